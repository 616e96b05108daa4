"""Records: frozen, strict, JSON round trips; errors name field, value and allowed values."""

import importlib
import pkgutil

import pytest
from conftest import images, tokenizer, trial
from pydantic import ValidationError

import sweeps
from pipelines.workspace.sweeps import SweepError, find_sweep, known_sweeps
from var_scaling.config import ImportedTokenizer, TrainedTokenizer
from var_scaling.experiment import Sweep, Trial
from var_scaling.explain import explain
from var_scaling.models.var.config import VarModel, paper_recipe
from var_scaling.recipe import Optimiser
from var_scaling.record import difference


def explained(record, **values) -> str:
    with pytest.raises(ValidationError) as caught:
        record(**values)
    return explain(caught.value, record)


@pytest.mark.parametrize("record", [trial(), tokenizer(), images(), trial().model])
def test_a_record_survives_a_round_trip_through_json(record):
    assert type(record).model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize("sweep", known_sweeps(), ids=lambda sweep: sweep.name)
def test_every_sweep_survives_json_and_has_the_name_of_its_file(sweep):
    assert Sweep.model_validate_json(sweep.model_dump_json()) == sweep
    assert sweep.name in {module.name for module in pkgutil.iter_modules(sweeps.__path__)}


def test_importing_a_sweep_twice_gives_the_same_record():
    module = importlib.import_module("sweeps.quickstart")
    first = module.sweep
    assert importlib.reload(module).sweep.fingerprint() == first.fingerprint()


def test_a_wrong_value_is_refused_with_the_allowed_values():
    assert "depth = 0: Input should be greater than 0" in explained(VarModel, depth=0)
    text = explained(Optimiser, learning_rate=1e-3, betas=(0.9, 1.0))
    assert "betas.1 = 1.0: Input should be less than 1" in text


def test_an_unknown_field_is_refused_with_the_known_ones():
    text = explained(VarModel, depth=2, hieght=3)
    assert "hieght: no such field; allowed: adaln_init, depth" in text


def test_an_unknown_nested_field_is_refused_with_the_fields_of_its_record():
    wrong = trial().model_dump()
    wrong["tokenizer"]["codebook"]["dekay"] = 1
    text = explained(Trial, **wrong)
    assert "tokenizer.codebook.dekay: no such field; allowed: decay" in text


def test_strings_are_not_numbers():
    assert "depth = '2'" in explained(VarModel, depth="2")


def test_images_with_a_side_that_the_tokenizer_does_not_take_are_refused():
    assert "needs images of side 16" in explained(
        TrainedTokenizer, **{**dict(tokenizer()), "data": images(side=32)}
    )
    assert "the tokenizer takes images of 16" in explained(
        Trial, **{**dict(trial()), "data": images(side=8)}
    )


def test_two_different_records_with_one_name_are_refused_with_the_difference():
    other = trial(name="d3", tokenizer=tokenizer(codebook_size=64))
    text = explained(Sweep, name="s", question="?", trials=(trial(), other))
    assert "tokenizers are named t: codebook_size: recorded 32, expected 64" in text
    text = explained(Sweep, name="s", question="?", trials=(trial(), trial()))
    assert "repeated: d2" in text


def test_a_name_must_fit_a_folder():
    assert "name = '../x'" in explained(Trial, **{**dict(trial()), "name": "../x"})


def test_difference_names_each_field_that_differs():
    one, other = trial().model_dump(), trial(seed=1, batch_size=4).model_dump()
    assert difference(one, other) == [
        "batch_size: recorded 8, expected 4",
        "seed: recorded 0, expected 1",
    ]


def test_the_last_evaluation_is_at_the_end():
    assert trial(steps=100, evaluations=3).evaluation_steps == (25, 50, 100)
    assert trial(steps=1, evaluations=3).evaluation_steps == (1,)


@pytest.mark.parametrize(
    ("depth", "batch", "epochs", "peak", "gamma", "final", "decay", "shared"),
    [  # the released trainer's; peak = rate per 256 images x batch / 256
        (16, 768, 200, 3e-4, 1e-3, 0.1, 0.05, False),
        (20, 768, 250, 3e-4, 1e-3, 0.1, 0.05, False),
        (24, 768, 350, 2.4e-4, 1e-4, 0.01, 0.05, False),
        (30, 1024, 350, 3.2e-4, 1e-5, 0.01, 0.08, False),
        (36, 768, 350, 2.4e-4, 5e-6, 0.01, 0.08, True),
    ],
)
def test_presets_equal_the_published_recipes(
    depth, batch, epochs, peak, gamma, final, decay, shared
):
    rung = paper_recipe(depth)
    model, optimiser = rung.model, rung.optimiser
    assert (rung.batch_size, rung.epochs, rung.precision) == (batch, epochs, "fp16")
    assert optimiser.learning_rate == pytest.approx(peak)
    assert (optimiser.final, optimiser.final_weight_decay) == (final, decay)
    assert (optimiser.weight_decay, optimiser.betas, optimiser.grad_clip) == (
        0.05,
        (0.9, 0.95),
        2.0,
    )
    assert (optimiser.warm_up, optimiser.warm_up_from, optimiser.plateau) == (0.02, 0.005, 0.05)
    assert (model.gamma_init, model.adaln_init, model.head_init) == (gamma, 0.5, 0.02)
    assert (model.width, model.heads, model.shared_adaln) == (64 * depth, depth, shared)
    assert model.drop_path == pytest.approx(0.1 * depth / 24)


def test_the_papers_grid_has_the_law_and_the_published_models():
    trials = {trial.model.depth: trial for trial in find_sweep("imagenet256").trials}
    assert sorted(trials) == list(range(6, 31, 2))
    # Updates per epoch as in the released trainer: ceil(images / batch).
    steps = [trials[d].steps for d in (6, 16, 20, 24, 30)]
    assert steps == [333_800, 333_800, 417_250, 584_150, 438_200]
    t = trials[16]
    assert (t.data.enlarge, t.data.flip, t.class_dropout_prob) == (1.125, False, 0.1)


def test_a_loss_weight_without_its_critic_is_refused():
    from var_scaling.recipe import Losses

    assert "a critic is required" in explained(Losses, adversarial=0.4)
    assert "all 0" in explained(Losses, l2=0.0)


def test_an_imported_tokenizer_is_identified_by_its_file():
    record = ImportedTokenizer(name="r", sha256="0" * 64)
    assert record.side == 256
    assert "sha256 = 'abc'" in explained(ImportedTokenizer, name="r", sha256="abc")
    whole = trial(tokenizer=record, data=images(side=256))
    assert Trial.model_validate_json(whole.model_dump_json()) == whole


def test_a_users_sweep_file_is_found_by_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from sweeps.smoke import sweep as s\n"
        "sweep = s.model_copy(update={'name': 'mine', 'trials': s.trials[:1]})\n"
    )
    assert find_sweep(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "defines no `sweep"),
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError"),
        (
            "from var_scaling.models.var.config import VarModel\n\nVarModel(depth=-1)\n",
            "line 3:\ndepth = -1",
        ),
        ("sweep = (\n", "SyntaxError"),
    ],
)
def test_a_broken_sweep_file_is_refused_with_what_to_fix(tmp_path, content, message):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(SweepError, match=message.replace("(", r"\(")):
        find_sweep(str(path))


def test_an_unknown_sweep_is_refused_with_the_known_ones():
    with pytest.raises(SweepError, match="quickstart, quickstart_again, rehearsal, smoke"):
        find_sweep("quickstat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trails": ()}, "trails: no such field"),
        ({"batch": 8}, "batch: no such field: it is now called batch_size"),
        ({"label_drop": 0.1}, "label_drop: no such field: it is now called class_dropout_prob"),
        ({"batch_size": -4}, "batch_size = -4: Input should be greater than 0"),
        ({"name": "d 1/../x"}, "name = 'd 1/../x'"),
    ],
)
def test_a_changed_copy_is_checked_like_any_other_record(change, message):
    with pytest.raises(ValidationError) as caught:
        trial().model_copy(update=change)
    assert message in explain(caught.value, Trial)
