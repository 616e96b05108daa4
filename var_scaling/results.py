"""One results row: the contract between making and understanding."""

from typing import Literal

from var_scaling.record import Name, Record

Status = Literal["done", "running", "diverged", "failed", "waiting", "imported", "damaged"]


class Row(Record):
    """One evaluation of one trial. Losses in nats a token, errors as shares of tokens, FLOPs of the
    whole training so far; forward, sampling (guided), encoding and decoding FLOPs are of one image.
    None where nothing was measured, or where nobody here knows: how an imported model was trained.
    """

    sweep: Name
    trial: Name
    family: str
    depth: int
    width: int
    heads: int
    seed: int | None
    tokenizer: Name
    data: Name
    step: int | None
    steps: int | None
    batch: int | None
    precision: str | None
    learning_rate: float | None
    schedule: str | None  # of the rate; runs of one class differ in its peak and length alone
    images_seen: int | None
    tokens_seen: int | None
    unique_tokens: int | None  # in the training set
    epochs: float | None  # passes over the training images so far
    params_total: int
    params_blocks: int
    params_embedding: int
    params_attention: int
    params_mlp: int
    params_adaln: int
    params_head: int
    forward_flops: int
    sampling_flops: int
    encoding_flops: int
    decoding_flops: int
    train_flops: int | None
    train_flops_embedding: int | None
    train_flops_attention_projections: int | None
    train_flops_attention_scores: int | None
    train_flops_mlp: int | None
    train_flops_adaln: int | None
    train_flops_head: int | None
    train_flops_dense_mask: int | None
    train_flops_6n_total: int | None
    train_flops_6n_blocks: int | None
    train_loss: float | None
    val_loss: float | None
    val_loss_last: float | None
    val_error: float | None
    val_error_last: float | None
    val_loss_stderr: float | None
    val_error_stderr: float | None
    val_loss_per_scale: tuple[float, ...] | None
    val_error_per_scale: tuple[float, ...] | None
    val_loss_no_label: float | None
    val_loss_no_label_last: float | None
    val_error_no_label: float | None
    val_error_no_label_last: float | None
    val_images: int | None
    evaluation_flops: int | None  # of this evaluation
    fid: float | None = None  # of samples, as all until fidelity_reference
    inception_score: float | None = None
    kid: float | None = None
    fidelity_precision: float | None = None  # `precision` is that of the arithmetic
    fidelity_recall: float | None = None
    fd_seeded: float | None = None  # as FID, but of the small seeded extractor
    fidelity_samples: int | None = None
    # Which samples: the largest set; of equals `default`, else the one last measured.
    fidelity_set: str | None = None
    fidelity_reference: str | None = None  # what they were compared with, all of them
    speed_machine: str | None = None  # that last measured on; what follows is of it alone
    sampling_images_per_second: float | None = None  # most guidance, best batch
    sampling_latency_seconds: float | None = None  # of one image alone
    sampling_peak_memory_bytes: int | None = None
    training_tokens_per_second: float | None = None
    training_mfu: float | None = None  # share of the machine's measured peak
    seconds: float | None
    images_per_second: float | None
    attempts: int | None  # lives of the training, each from where the last was saved
    lost_seconds: float | None  # of training after a last checkpoint: in no other column
    lost_flops: int | None
    status: Status  # damaged: the log that the scores are read from is not what was written
    commit: str | None
    damage: str | None = None  # which files of the finished trial are damaged, and how to repair it
