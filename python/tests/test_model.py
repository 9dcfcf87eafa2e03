"""Plain CLIP, before any training."""

from __future__ import annotations

import numpy as np
import pytest

import clip_engine


@pytest.fixture(scope="module")
def model():
    return clip_engine.load("demo", progress=False)


def test_image_features_are_those_of_transformers(model, reference):
    features = model.embed(reference["pixels"])
    assert (features.dtype, features.shape) == (np.float32, (12, model.width))
    assert model.image_size == 64
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(features, reference["image_features"], atol=1e-5)
    assert model.embed([]).shape == (0, model.width)


def test_text_features_are_those_of_transformers(model, run, reference):
    templates, names = run.settings["templates"], run.class_names
    prompts = [template.replace("{}", name) for name in names for template in templates]
    features = model.embed_text(prompts)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    of_classes = features.reshape(len(names), len(templates), -1).sum(axis=1)
    of_classes /= np.linalg.norm(of_classes, axis=1, keepdims=True)
    np.testing.assert_allclose(of_classes, reference["class_features"], atol=1e-5)
    np.testing.assert_allclose(model.embed_text(prompts[0]), features[:1], atol=1e-6)


def test_photos_are_those_of_the_data(run, reference):
    photos = clip_engine.photos(split="test", progress=False)
    assert (photos.images.dtype, photos.images.shape) == (np.uint8, (360, 64, 64, 3))
    assert photos.class_names == run.class_names and set(photos.paths) == {None}
    # The first of each class.
    first = np.unique(photos.labels, return_index=True)[1]
    assert np.array_equal(photos.images[first], reference["pixels"])
    predicted = [run.class_names.index(each.label) for each in run.predict(photos.images)]
    assert np.mean(photos.labels == predicted) == run.summary["test"]["top1"]


def test_zero_shot_is_that_beside_the_run(run):
    scores = clip_engine.zero_shot("demo", progress=False)
    plain = run.summary["zero_shot"]
    assert (scores["images"], scores["top1"]) == (plain["images"], plain["top1"])


def test_no_model():
    with pytest.raises(clip_engine.EngineError) as caught:
        clip_engine.load("./nowhere", progress=False)
    assert "\n" not in str(caught.value)
