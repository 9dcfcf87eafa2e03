"""A finished run: what it holds, and what its classifier can do."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import engine, tensors
from PIL import Image

import clip_engine


@pytest.fixture(scope="module")
def paths(photos):
    return sorted(photos.iterdir())


def same(left, right):
    """Whether the same is said, to the bit."""
    pairs = list(zip(left, right))
    return len(left) == len(right) and all(
        a.classes == b.classes and np.array_equal(a.probabilities, b.probabilities) for a, b in pairs
    )


def test_predictions_are_those_of_the_command(run, photos, paths):
    found = run.predict(photos, top_k=3)
    lines = [json.loads(line) for line in engine("predict", "--run", run.path, "--json", photos).stdout.splitlines()]
    assert [prediction.path for prediction in found] == [line["path"] for line in lines] == [*map(str, paths)]
    for prediction, line in zip(found, lines):
        best = line["predictions"][:3]
        assert prediction.classes == [choice["class"] for choice in best]
        assert list(prediction.probabilities) == [choice["probability"] for choice in best]
        assert (prediction.label, prediction.probability) == (best[0]["class"], best[0]["probability"])


def test_every_form_of_an_image_is_the_same(run, photos, paths, reference):
    by_path = run.predict(photos)
    assert same(run.predict([Image.open(path) for path in paths]), by_path)
    flowers, pixels = paths[:12], reference["pixels"]
    by_path = run.predict(flowers)
    assert same(run.predict(pixels), by_path)
    assert same(run.predict(list(pixels)), by_path)
    one = run.predict(str(flowers[0]))
    assert same(run.predict(pixels[0]), one) and same(run.predict(Image.fromarray(pixels[0])), one)
    grey = next(path for path in paths if path.stem == "noise-grey")
    assert same(run.predict(np.array(Image.open(grey))), run.predict(grey))


def test_images_stay_in_their_order(run, paths, reference):
    mixed = run.predict([paths[3], reference["pixels"][0], Image.open(paths[5]), str(paths[1])])
    assert [prediction.path for prediction in mixed] == [str(paths[3]), None, None, str(paths[1])]
    alone = run.predict([paths[number] for number in (3, 0, 5, 1)])
    assert [prediction.label for prediction in mixed] == [prediction.label for prediction in alone]
    assert run.predict([]) == []


def test_what_is_no_image_is_refused(run, tmp_path, reference):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no photo")
    with pytest.raises(clip_engine.EngineError, match=r"bad\.jpg: ") as caught:
        run.predict(bad)
    assert "\n" not in str(caught.value)
    for image in (3, np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), Image.new("I;16", (4, 4))):
        with pytest.raises(TypeError):
            run.predict([image])


def test_features_are_those_of_the_command(run, photos, paths, tmp_path):
    file = tmp_path / "features.safetensors"
    engine("embed", "--run", run.path, "--images", photos, "--out", file)
    found, metadata = tensors(file)
    assert len(json.loads(metadata["paths"])) == len(paths)
    features = run.embed(photos)
    assert features.dtype == np.float32 and np.array_equal(features, found["features"])
    assert np.array_equal(run.embed([Image.open(path) for path in paths]), features)


def test_evaluation_is_that_of_the_command(run):
    found = run.evaluate("val", device="cpu")
    shown = json.loads(engine("eval", "--run", run.path, "--split", "val", "--json").stdout)
    beside = {"classes", "confusion", "calibration"}
    assert dict(found) == {name: value for name, value in shown.items() if name not in beside}
    assert found.classes == shown["classes"] and found.calibration == shown["calibration"]
    assert found.confusion.tolist() == shown["confusion"] and found.confusion.dtype == np.int64
    assert found["top1"] == run.summary["val"]["top1"] == np.trace(found.confusion) / found["images"]
    with pytest.raises(TypeError, match="batch_size"):
        run.evaluate(batchsize=8)


def test_evaluation_of_the_run(run):
    found = run.evaluation
    assert found.split == "test" and dict(found) == run.summary["test"]
    assert found.class_names == run.class_names == [entry["name"] for entry in found.classes]
    assert found.confusion.sum() == found["images"] == 360
    assert found.confusion.sum(axis=1).tolist() == [entry["images"] for entry in found.classes]
    assert found.confusion.sum(axis=0).tolist() == [entry["predicted"] for entry in found.classes]
    assert sum(entry["images"] for entry in found.calibration) == 360


def test_tables_escape_names(run, tmp_path):
    other = tmp_path / "<b>run"
    shutil.copytree(run.path, other)
    comparison = clip_engine.compare([run, other])
    report = json.loads((other / "evaluation.json").read_text())
    report["class_names"][0] = "<b>daisy"
    (other / "evaluation.json").write_text(json.dumps(report))
    other = clip_engine.Run(other)
    for table in (comparison, comparison.rows, other, other.evaluation, other.evaluation.classes):
        html = table._repr_html_()
        assert "&lt;b&gt;" in html and "<b>" not in html
    assert f"{100 * run.summary['test']['top1']:.1f} %" in run._repr_html_()


def test_pictures(run, tmp_path):
    for name in ("curves", "losses", "classes", "confusion", "calibration"):
        picture = getattr(run.plot, name)()
        shown = picture._repr_svg_()
        assert picture.svg.startswith("<svg ") and shown.endswith(picture.svg[len("<svg ") :]) and "max-width" in shown
        picture.save(tmp_path / "picture.svg")
        picture.save(str(tmp_path / "picture.png"))
        assert (tmp_path / "picture.svg").read_bytes() == (run.path / f"plots/{name}.svg").read_bytes()
        assert (tmp_path / "picture.png").read_bytes() == (run.path / f"plots/{name}.png").read_bytes()
    with pytest.raises(AttributeError, match=r"no picture 'ladder', only: calibration, .*curves"):
        run.plot.ladder()
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        run.plot.curves().save("picture.pdf")


def test_comparison(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run.path, again)
    out = tmp_path / "both"
    found = clip_engine.compare([run, again], out=out)
    assert found.rows == json.loads((out / "comparison.json").read_text())["rows"]
    assert [row["name"] for row in found.rows] == ["plain CLIP", "logistic regression", "run", "again"]
    assert found.rows[2]["test_top1"] == run.summary["test"]["top1"]
    assert found.plot.techniques().svg.startswith("<svg")
    with pytest.raises(clip_engine.EngineError, match="--overwrite"):
        clip_engine.compare([run, again], out=out)


def test_merged_export_is_the_same_model(run, tmp_path, reference):
    run.export(merged=tmp_path / "merged")
    merged = clip_engine.load(tmp_path / "merged", progress=False)
    np.testing.assert_allclose(merged.embed(reference["pixels"]), run.embed(reference["pixels"]), atol=1e-5)
    run.export(peft=tmp_path / "peft")
    assert (tmp_path / "peft/adapter/adapter_config.json").exists()
    with pytest.raises(TypeError):
        run.export()


def test_pandas(run):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(run.history)
    assert list(frame["epoch"]) == [1, 2, 3] and frame["val.top1"].between(0, 1).all()
    assert len(pandas.DataFrame(run.evaluation.classes)) == 12
