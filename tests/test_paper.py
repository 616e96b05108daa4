"""`fit --paper`: figures that fit a column, a table of chosen laws, and only own files."""

import re
import shutil
import subprocess
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from test_figures import full as full
from test_figures import isoflop_rows, texts
from test_fit_options import line

from analysis.compute_optimal.surface import fit_surface
from analysis.plots import allocation as figures_allocation
from analysis.plots import paper as paper_plots
from analysis.plots.paper import paper_figures
from analysis.report import paper as report_paper
from analysis.report.paper import (
    EXAMPLE,
    TABLE,
    RowError,
    all_rows,
    announced_rows,
    choose_rows,
    example,
    file_names,
    paper_files,
    paper_table,
)
from analysis.summary import verdicts
from analysis.table.table import check
from pipelines.cli.terminal.paper import print_paper
from pipelines.report import paper as pipeline
from pipelines.report.paper import PaperOptions, paper_options, split_rows, write_paper
from var_scaling.disk import read_json, write_json

NARROWEST = 3.18  # inches: a column of LaTeX's `article`


@pytest.fixture(scope="module")
def figures(full):
    """Each figure by name, laid out."""
    drawn = {}
    with pytest.MonkeyPatch.context() as patch, mpl.rc_context(paper_plots._STYLE):
        patch.setattr(figures_allocation, "_RESAMPLES", 60)
        for each in paper_figures(full):
            drawn[each.name] = each.draw()
            FigureCanvasAgg(drawn[each.name]).draw()
    return drawn


# Figures -------------------------------------------------------------------------------------


def test_every_law_has_a_figure_and_its_name_says_which(figures):
    assert set(figures) == {
        *(f"{metric}_vs_{x}" for metric in ("L_mean", "L_last", "Err_mean", "Err_last")
          for x in ("N", "N_total", "C")),
        "L_mean_surface", "Err_mean_surface", "scales_vs_N", "isoflop_curves",
        "best_N_vs_C", "best_D_vs_C",
    }  # fmt: skip


def test_a_figure_has_one_panel_of_column_width_and_no_title(figures):
    for name, figure in figures.items():
        panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert len(panels) == 1, name
        assert 3.25 <= figure.get_figwidth() <= 3.5, name
        assert figure.get_figheight() <= figure.get_figwidth(), name
        assert panels[0].get_title() == "", name
        assert figure.get_suptitle() == "", name


def test_no_text_is_smaller_than_7_points_in_the_narrowest_column(figures):
    for name, figure in figures.items():
        for text, box in texts(figure):
            size = text.get_fontsize() * NARROWEST / figure.get_figwidth()
            assert size >= 7, (name, text.get_text())
            # Mathtext sets these at 70 % of the size.
            assert not re.search(r"[_^]\{?\w", text.get_text()), (name, text.get_text())
            inside = figure.bbox.padded(1)
            assert inside.contains(box.x0, box.y0), (name, text.get_text())
            assert inside.contains(box.x1, box.y1), (name, text.get_text())


def test_no_legend_covers_a_point_or_a_line(figures):
    for name, figure in figures.items():
        renderer = figure.canvas.get_renderer()
        for panel in figure.axes:
            around = panel.get_window_extent(renderer)
            boxes = [key.get_window_extent(renderer) for key in figure.legends]
            if panel.get_legend() is not None:
                boxes.append(panel.get_legend().get_window_extent(renderer))
                assert around.x0 <= boxes[-1].x0 + 1, name
                assert boxes[-1].x1 <= around.x1 + 1, name
            places = [line.get_xydata() for line in panel.lines]
            places += [points.get_offsets() for points in panel.collections]
            for place in np.concatenate([panel.transData.transform(each) for each in places]):
                if around.contains(*place):
                    assert not any(box.contains(*place) for box in boxes), name


def test_series_differ_in_line_or_marker_not_only_in_colour(figures):
    for name in ("best_N_vs_C", "L_mean_vs_N", "isoflop_curves", "L_mean_surface"):
        figure = figures[name]
        keys = [*figure.legends, *(panel.get_legend() for panel in figure.axes)]
        lines = [line for key in keys if key is not None for line in key.get_lines()]
        styles = [(str(line.get_linestyle()), str(line._dash_pattern), line.get_marker())
                  for line in lines if line.get_linestyle() != "None"]  # fmt: skip
        assert len(set(styles)) == len(styles), name


def test_a_figure_is_a_vector_pdf_and_a_png_with_the_same_bytes_every_time(full):
    (one,) = [each for each in paper_figures(full) if each.name == "L_mean_surface"]
    files = one.files()
    assert set(files) == {"L_mean_surface.pdf", "L_mean_surface.png"}
    pdf = files["L_mean_surface.pdf"]
    assert b"/Subtype /Image" not in pdf
    width = float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", pdf).group(1))
    assert 3.25 <= width / 72 <= 3.5
    assert one.files() == files


def test_many_sizes_have_a_colour_bar_in_vector_graphics(full):
    rows = full.table.rows
    sizes = np.resize(np.geomspace(1e6, 1e8, 15), len(rows))
    many = replace(full, table=replace(full.table, rows=rows.assign(params_blocks=sizes)))
    (one,) = [each for each in paper_figures(many) if each.name == "L_last_vs_C"]
    assert b"/Subtype /Image" not in one.files()["L_last_vs_C.pdf"]


def test_runs_of_different_D_have_the_figure_of_the_surface_instead_of_one_in_N(full):
    mixed = replace(full, mixed_data={"val_loss": "runs of one size have different D"})
    names = {each.name for each in paper_figures(mixed)}
    assert {"L_mean_surface", "L_mean_vs_C", "L_last_vs_N"} <= names
    assert not {"L_mean_vs_N", "L_mean_vs_N_total"} & names


# Rows ----------------------------------------------------------------------------------------


def named(study, *names):
    return [row.name for row in choose_rows({"": study}, names)[""]]


def test_by_default_the_rows_are_those_that_the_report_announces(full):
    rows = announced_rows(full)
    headlines = " ".join(each.headline for each in verdicts(full))
    assert rows
    for row in rows:
        assert f"{row.law.fit.alpha:.4f}" in headlines, row.name
    assert len(re.findall("exponent", headlines)) == len(rows)
    assert choose_rows({"": full}, None)[""] == rows


def test_rows_are_chosen_by_label_by_short_name_and_by_form(full):
    assert named(full, "L_mean(N) floor", "L_mean(N) pure") == ["L_mean(N) floor", "L_mean(N) pure"]
    assert named(full, "L(N,D)", "E(N, D)") == ["L_mean(N, D) surface", "Err_mean(N, D) surface"]
    assert {name.split()[0] for name in named(full, "L(C)", "Err_last(N_total)")} == {
        "L_mean(C)", "Err_last(N_total)",
    }  # fmt: skip
    assert named(full, "L(N)", "L_mean(N)") == named(full, "L(N)"), "no row twice"


def test_an_unknown_row_is_refused_with_the_names_of_all_rows(full):
    for wrong in ("L(X)", "loss", "L(N) sigmoid", "L_mean"):
        with pytest.raises(RowError) as error:
            choose_rows({"": full}, ["L(N)", wrong])
        assert f"--rows {wrong}: there is no such law" in str(error.value)
        assert "L_mean(N) (pure, floor)" in str(error.value)
        assert "L_mean(N, D)" in str(error.value)


def test_N_is_the_only_count_of_parameters_of_a_table(full):
    (found,) = [each for each in full.findings if each.label == "L_mean(N_total)"
                and each.fit.law.name == "pure"]  # fmt: skip
    only = replace(full, size="params_total", findings=(found,), surfaces={})
    assert named(only, "L(N)") == ["L_mean(N_total) pure"]


def test_names_are_separated_by_commas_outside_brackets():
    assert split_rows("L(N), L(C),E(N,D) ,") == ("L(N)", "L(C)", "E(N,D)")
    assert split_rows("L_mean(N, D) surface") == ("L_mean(N, D) surface",)


# Table ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["one", "two"])
def test_the_table_has_equal_columns_and_balanced_braces(with_forms, columns):
    rows = all_rows(with_forms)
    table = paper_table(with_forms, rows, columns)
    lines = [each for each in table.splitlines() if each[0] != "%"]
    text = "\n".join(lines)
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    assert not set(text) & {"α", "∞", "–", "−"}
    count = len(re.search(r"\\begin\{tabular\}\{@\{\}(\w+)@\{\}\}", text).group(1))
    body = [each for each in lines if each.endswith(r"\\") and "multicolumn" not in each]
    assert {len(re.findall(r"(?<!\\)&", each)) for each in body} == {count - 1}
    for row in rows:
        assert f"{row.law.fit.alpha:.3g}" in text or f"{row.law.fit.alpha:.4g}" in text


def test_units_are_in_the_header_or_with_each_row_if_they_differ(full):
    (loss,) = choose_rows({"": full}, ["L(N) floor"])[""]
    (error,) = choose_rows({"": full}, ["E(N) floor"])[""]
    assert "(nats/token)" in paper_table(full, [loss], "one").split(r"\midrule")[0]
    both = paper_table(full, [loss, error], "one")
    assert "nats/token" not in both.split(r"\midrule")[0]
    assert "$E$ in nats/token" in both
    assert "$E$ in share" in both
    assert "(nats/token; share)" in paper_table(full, [loss, error], "two").split(r"\midrule")[0]


def test_a_law_of_the_odds_is_named_as_such(full):
    rows = choose_rows({"": full}, ["E(N) pure", "E(N) logit"])[""]
    for columns in ("one", "two"):
        assert paper_table(full, rows, columns).count("of the odds") == 1
    assert "of the odds: $L / (1 - L)" in example(full, [], rows)


@pytest.fixture(scope="module")
def with_forms(full):
    """The study with other laws in N and D of the loss."""
    finals, laws = check(isoflop_rows()).finals, ("tied", "interaction")
    forms = (fit_surface(finals, "val_loss", "params_blocks", law=law) for law in laws)
    return replace(full, forms=tuple(forms))


def test_other_laws_in_N_and_D_have_rows(full, with_forms):
    tied, crossed = (replace(form, contradictions=()) for form in with_forms.forms)
    assert named(with_forms, "L(N, D) tied", "L(N,D) interaction") == [
        "L_mean(N, D) tied", "L_mean(N, D) interaction",
    ]  # fmt: skip
    assert named(with_forms, "L(N, D)") == ["L_mean(N, D) surface"]
    alone = replace(with_forms, surfaces={})
    assert named(alone, "L(N, D)") == ["L_mean(N, D) tied", "L_mean(N, D) interaction"]
    announced = [row.name for row in announced_rows(with_forms)]
    asked = [
        f"L_mean(N, D) {form.fit.law.name}" for form in with_forms.forms if not form.no_law
    ]  # fmt: skip
    assert announced == [row.name for row in announced_rows(full)] + asked
    rows = choose_rows({"": with_forms}, ["L(N)", "L(N, D) tied", "L(N, D) interaction"])[""]
    narrow, wide = (paper_table(with_forms, rows, columns) for columns in ("one", "two"))
    for table in (narrow, wide):
        body = table.split(r"\midrule")[1]
        assert body.count("tied") == body.count("interaction") == 1
    # β of the law that has one, γ likewise; a column of its own in the wide table.
    assert rf"$\gamma$ {crossed.fit['gamma']:#.3g}"[:14] in narrow.replace("$-", "-")
    assert narrow.count(r"$\beta$") == narrow.count(r"$\gamma$") == 1
    assert wide.split(r"\midrule")[0].count(r"$\gamma$") == 1
    (of_tied,) = [each for each in wide.splitlines() if ", tied &" in each]
    assert of_tied.split(" & ")[2:4] == ["--", "--"]
    assert f"{tied.fit.alpha:#.4g}" in of_tied
    caption = example(with_forms, [], rows)
    assert r"tied: $L(N, D) = E + A N^{-\alpha} + B D^{-\alpha}$" in caption
    assert r"interaction: $L(N, D) = E + A N^{-\alpha} + B N^\gamma D^{-\beta}$" in caption


def test_a_law_that_must_not_be_announced_is_marked(full):
    (row,) = choose_rows({"": full}, ["L(N) floor"])[""]
    assert "dagger" not in paper_table(full, [row])
    contradicted = replace(row, law=replace(row.law, contradictions=("the loss rises",)))
    assert paper_table(full, [contradicted]).count(r"\dagger") == 2, "the row and the note"
    mixed = replace(full, mixed_data={"val_loss": "different D"})
    assert r"\dagger" in paper_table(mixed, [row])


def test_endless_intervals_fixed_constants_and_huge_values_have_short_cells(full):
    (row,) = choose_rows({"": full}, ["L(N) floor"])[""]
    span = replace(row.law.intervals["alpha"], low=-np.inf, high=3.3e17)
    law = replace(row.law, intervals={"alpha": span}, fit=replace(row.law.fit, floor=1.5))
    table = paper_table(full, [replace(row, law=law)], "one")
    assert r"[$-\infty$, $3.3 \cdot 10^{17}$]" in table
    assert "fixed" in table


# Files ---------------------------------------------------------------------------------------


def few_figures(patch, full, *names):
    """Only the figures of these names, and each of them empty: drawing takes long."""
    kept = tuple(
        replace(each, draw=lambda: Figure((1, 1)))
        for each in paper_figures(full) if each.name in names
    )  # fmt: skip
    patch.setattr(report_paper, "paper_figures", lambda study: kept)


@pytest.fixture
def two_figures(full, monkeypatch):
    few_figures(monkeypatch, full, "L_mean_vs_N", "L_mean_surface")


WRITTEN = {
    "L_mean_vs_N.pdf", "L_mean_vs_N.png", "L_mean_surface.pdf", "L_mean_surface.png",
    "laws.tex", "example.tex", "paper.json",
}  # fmt: skip


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_are_those_that_were_planned_and_the_example_includes_all(full, two_figures):
    rows = announced_rows(full)
    files = paper_files(full, rows)
    assert list(files) == file_names(full, rows)
    document = files[EXAMPLE].decode()
    included = set(re.findall(r"\\includegraphics\[[^]]*\]\{(\w+)\}", document))
    assert included == {name.split(".")[0] for name in files} - {"laws", "example"}
    assert r"\input{laws}" in document
    assert document.count("{") == document.count("}")
    assert TABLE not in paper_files(full, []), "no law is announced: no table"


def test_only_own_files_are_replaced_and_old_ones_removed(full, two_figures, tmp_path, monkeypatch):
    (tmp_path / "main.tex").write_text("mine")
    options = PaperOptions(tmp_path)
    write_paper(options, {"": full}, tmp_path / "report")
    assert set(content_of(tmp_path)) == WRITTEN | {"main.tex"}
    few_figures(monkeypatch, full, "L_mean_surface")
    write_paper(options, {"": full}, tmp_path / "report")
    kept = {name for name in WRITTEN if not name.startswith("L_mean_vs")}
    assert set(content_of(tmp_path)) == kept | {"main.tex"}
    assert (tmp_path / "main.tex").read_text() == "mine"
    assert set(read_json(tmp_path / "paper.json")["files"]) == kept - {"paper.json"}


def test_a_file_of_the_user_is_never_overwritten(full, two_figures, tmp_path):
    (tmp_path / "example.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"example.tex would be overwritten"):
        write_paper(PaperOptions(tmp_path), {"": full}, tmp_path / "report")
    assert content_of(tmp_path) == {"example.tex": b"mine"}


def test_a_changed_list_of_files_deletes_nothing_outside_the_folder(full, two_figures, tmp_path):
    folder, outside = tmp_path / "paper", tmp_path / "mine.txt"
    outside.write_text("mine")
    write_json(folder / "paper.json", {"format": 1, "files": ["../mine.txt", str(outside)]})
    write_paper(PaperOptions(folder), {"": full}, tmp_path / "report")
    assert outside.exists()


def test_after_an_interruption_every_file_is_whole_and_the_next_call_succeeds(
    full, two_figures, tmp_path, monkeypatch
):
    def interrupted(*words, **options):
        raise KeyboardInterrupt

    options = PaperOptions(tmp_path / "paper")
    with monkeypatch.context() as patch:
        patch.setattr(report_paper, "paper_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_paper(options, {"": full}, tmp_path)
    assert not options.folder.exists(), "nothing is written before everything is drawn"
    whole = paper_files(full, announced_rows(full))

    written = []
    real = pipeline.atomic_write

    def third_fails(path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "atomic_write", third_fails)
        with pytest.raises(KeyboardInterrupt):
            write_paper(options, {"": full}, tmp_path)
    found = content_of(options.folder)
    assert set(found) == {*written, "paper.json"}
    assert all(found[name] == whole[name] for name in written)
    write_paper(options, {"": full}, tmp_path)
    assert set(content_of(options.folder)) == WRITTEN


def test_groups_have_folders_of_their_own(full, two_figures, tmp_path):
    write_paper(PaperOptions(tmp_path), {"var, a": full, "ar": full}, tmp_path / "report")
    assert set(content_of(tmp_path / "var-a")) == WRITTEN - {"paper.json"}
    assert set(content_of(tmp_path / "ar")) == WRITTEN - {"paper.json"}


def test_the_folder_of_the_report_and_a_file_are_refused(full, tmp_path):
    with pytest.raises(ValueError, match="the folder of the report"):
        write_paper(PaperOptions(tmp_path), {"": full}, tmp_path)
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ValueError, match="file is not a folder that can be written to"):
            paper_options(wrong, None, None)
    with pytest.raises(ValueError, match="--rows: give names of laws"):
        paper_options(tmp_path, " , ", None)


# Command -------------------------------------------------------------------------------------


def test_rows_and_columns_need_paper(command, tmp_path):
    code, _, err = command("fit", "runs.csv", "--rows", "L(N)", "--columns", "two")
    assert code == 2
    assert "--rows, --columns: only with --paper FOLDER" in err


def test_an_unknown_row_stops_the_command_before_any_file(command, tmp_path):
    line().to_csv(tmp_path / "runs.csv", index=False)
    out = tmp_path / "paper"
    words = ("--law", "pure", "--paper", str(out), "--rows", "L(N),L(Q)")
    code, _, err = command("fit", str(tmp_path / "runs.csv"), *words)
    assert code == 2
    assert "--rows L(Q): there is no such law. The rows are L_mean(N_total)" in err
    assert not out.exists()
    assert not (tmp_path / "runs-laws").exists()


@pytest.mark.slow
def test_the_command_writes_figures_table_and_example(command, tmp_path):
    line().to_csv(tmp_path / "runs.csv", index=False)
    words = ("--paper", str(tmp_path / "paper"), "--rows", "L(N) floor, L(N) pure")
    code, out, _ = command("fit", str(tmp_path / "runs.csv"), *words)
    assert code == 0
    assert "paper: 1 figure (PDF and PNG), laws.tex, example.tex" in out.replace("\n", "")
    names = set(content_of(tmp_path / "paper"))
    assert names == {"L_mean_vs_N_total.pdf", "L_mean_vs_N_total.png", "laws.tex", "example.tex",
                     "paper.json"}  # fmt: skip
    table = (tmp_path / "paper" / "laws.tex").read_text()
    assert table.count(r"L_{\mathrm{mean}}(N_{\mathrm{total}})") == 2
    assert (tmp_path / "runs-laws" / "laws.tex").exists()


def test_without_an_announced_law_the_command_says_why_there_is_no_table(tmp_path, capsys):
    write_json(tmp_path / "paper.json", {"files": ["L_mean_vs_N.pdf", "example.tex"]})
    print_paper(PaperOptions(tmp_path))
    assert "without a table: the report announces no law" in capsys.readouterr().out


# LaTeX ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX")
@pytest.mark.parametrize("columns", ["one", "two"])
def test_in_latex_the_table_fits_without_being_scaled(full, columns, tmp_path):
    rows = announced_rows(full) if columns == "one" else all_rows(full)
    table = paper_table(full, rows, columns)
    (tmp_path / TABLE).write_text(table)
    (tmp_path / EXAMPLE).write_text(example(full, [], rows, columns))
    log = compiled(tmp_path, EXAMPLE)
    assert "Overfull" not in log
    tabular = re.search(r"\\begin\{tabular\}.*\\end\{tabular\}", table, re.DOTALL).group()
    (tmp_path / "width.tex").write_text(
        r"\documentclass[twocolumn]{article}\usepackage{booktabs,graphicx}\begin{document}"
        r"\newsavebox{\one}\small\setlength{\tabcolsep}{2.5pt}\sbox{\one}{" + tabular + "}"
        r"\typeout{WIDTH \the\wd\one\space\the\columnwidth\space\the\textwidth}x\end{document}"
    )
    natural, column, text = map(
        float,
        re.search(
            r"WIDTH ([\d.]+)pt ([\d.]+)pt ([\d.]+)pt", compiled(tmp_path, "width.tex")
        ).groups(),
    )
    assert natural <= (column if columns == "one" else text)


def compiled(folder, name):
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name],
        cwd=folder, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout
