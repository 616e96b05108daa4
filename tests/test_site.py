"""The page over all sweeps of a home."""

import re

from var_scaling.disk import read_json, write_json


def test_the_page_has_all_sweeps_with_their_laws_and_needs_no_other_file(smoke, command):
    code, out, _ = command("report", "--site", "--home", smoke)
    assert code == 0
    page = (smoke / "index.html").read_text()
    assert out.strip() == str(smoke / "index.html")
    assert '<a href="smoke/report/index.html">smoke</a>' in page
    assert "4 of 4 trials finished" in page
    assert page.count("<tr><th>L_mean(N)") == 2
    assert "L_last" not in page
    assert '<p class="note">One seed for each size' in page
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    others = [link for link in links if not link.startswith(("#", "data:"))]
    assert others == ["smoke/report/index.html"]
    assert any(link.startswith("data:image/png") for link in links)


def test_data_that_contradict_a_law_and_the_order_of_families_are_said(smoke, tmp_path, command):
    laws = read_json(smoke / "smoke" / "laws.json")
    warning = {"check": "rising", "text": "val_loss rises.", "runs": [], "metrics": ["val_loss"]}
    laws["warnings"] = [warning]
    for law in laws["laws"]:
        law["no_law"] = None
    laws["laws"][0]["no_law"] = "val_loss rises with size"
    laws["families_order"] = ["By the seeded network ar has the smallest distance."]
    (tmp_path / "smoke").mkdir()
    write_json(tmp_path / "smoke" / "laws.json", laws)
    command("report", "--site", "--home", tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "<b>No law is announced.</b> val_loss rises." in page
    assert page.count(">no law</span>") == 1
    assert "no report yet" in page
    # The comparison of families, if there is one, comes before the laws.
    assert page.index("<p>By the seeded network ar has") < page.index("No law is announced.")


def test_laws_of_an_older_version_are_not_read(smoke, tmp_path, command):
    laws = {**read_json(smoke / "smoke" / "laws.json"), "format": 3}
    del laws["main"]
    (tmp_path / "smoke").mkdir()
    write_json(tmp_path / "smoke" / "laws.json", laws)
    code, _, err = command("report", "--site", "--home", tmp_path)
    assert code == 0, err
    assert "run <code>var-scaling fit smoke</code>" in (tmp_path / "index.html").read_text()


def test_unfinished_sweeps_are_listed_and_names_are_escaped(tmp_path, command):
    for name in ("d1", "d2"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        write_json(tmp_path / "mine" / name / "trial.json", {})
    write_json(tmp_path / "mine" / "d1" / "done.json", {"status": "done", "files": {}})
    code, _, err = command("report", "--site", "--home", tmp_path)
    assert code == 0, err
    page = (tmp_path / "index.html").read_text()
    assert "1 of 2 trials finished; no laws yet" in page
    (tmp_path / "empty").mkdir()
    command("report", "--site", "--home", tmp_path / "empty")
    assert "This home has no sweep yet." in (tmp_path / "empty" / "index.html").read_text()


def test_a_name_and_the_site_exclude_each_other(tmp_path, command):
    for words in (("smoke", "--site"), (), ("--site", "--against", "smoke")):
        code, _, err = command("report", *words, "--home", tmp_path)
        assert code != 0
        assert "give the NAME of a sweep, or --site" in err
