//! What every way to tune and to train has to keep to: a step moves all that is trained and nothing else,
//! and evaluation sees the model that was trained, whatever ran through the same memory before.

use clip_engine::backend::cpu::Cpu;
use clip_engine::dev::check::relative_error;
use clip_engine::dev::check::step::{TinySizes, TinyStep, adapter_techniques, techniques};
use clip_engine::objective::{MixDraw, MixOn};
use clip_engine::optim::{Rate, Rates};
use clip_engine::tensor::{DType, Tensor};
use clip_engine::train::learner::{Batch, Input, Learner, MicroBatch, Which};
use clip_engine::tune::{Place, Target, Tower};

/// Plain LoRA and all techniques.
fn steps() -> Vec<(&'static str, TinyStep)> {
    let sizes = TinySizes { batch: 7, ..TinySizes::ODD };
    let mut steps = vec![("LoRA", TinyStep::new(sizes, 3))];
    steps.extend(techniques(sizes, 3));
    steps.extend(techniques(sizes, 1));
    steps.extend(adapter_techniques(sizes, 2));
    steps
}

fn rates() -> Rates {
    // A decay would move tensors without a gradient.
    let rate = |learning_rate| Rate { learning_rate, weight_decay: 0.0 };
    Rates { head: rate(1e-2), lora: rate(1e-3), prompt: rate(1e-2) }
}

fn values(tensor: &Tensor) -> &[f64] {
    tensor.typed().unwrap()
}

fn gradients(learner: &Learner<Cpu<f64>>) -> Vec<Tensor> {
    learner.params().into_iter().map(|p| p.gradient.clone()).collect()
}

#[track_caller]
fn assert_same(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let error = relative_error(values(found), values(expected));
    assert!(error < 1e-12, "{what}: {error:e}");
}

/// Every number that is trained has a gradient, and so moves; the frozen model gives what it gave.
#[test]
fn a_step_moves_all_that_is_trained_and_nothing_else() {
    for (name, tiny) in steps() {
        let mut learner = tiny.learner().unwrap();
        let (images, labels) = tiny.batch().unwrap();
        let weights = tiny.class_weights(0);
        let class_weights = weights.as_deref();
        learner.evaluate(Input::Images(images.view().into()), &labels, Which::Frozen).unwrap();
        let (frozen, (_, text)) = (learner.features().unwrap(), learner.logits().unwrap());
        let before = learner.snapshot().unwrap();
        let draw = tiny.draw(labels.len(), 0);
        let batch = Batch { mix: draw.as_ref(), class_weights, ..Batch::new(images.view(), &labels) };
        learner.train_step(batch, &rates(), 1.0).unwrap();
        let after = learner.snapshot().unwrap();
        assert_eq!(before.len(), learner.param_names().len());
        for ((part, before), after) in learner.param_names().iter().zip(&before).zip(&after) {
            let still = values(before).iter().zip(values(after)).filter(|(before, after)| before == after);
            assert_eq!(still.count(), 0, "{name}: numbers of {part} that did not move");
        }
        learner.evaluate(Input::Images(images.view().into()), &labels, Which::Frozen).unwrap();
        assert_eq!(values(&learner.features().unwrap()), values(&frozen), "{name}: the frozen tower");
        assert_eq!(values(&learner.logits().unwrap().1), values(&text), "{name}: the text features");
    }
}

/// In a draw with λ = 1 nothing is mixed.
fn unmixed(tiny: &TinyStep, batch: usize) -> Option<MixDraw> {
    tiny.draw(batch, 0).map(|draw| MixDraw { lambda: vec![1.0; batch], ..draw })
}

#[test]
fn evaluation_sees_what_was_trained_whatever_ran_before() {
    for (name, tiny) in steps() {
        let mut learner = tiny.learner().unwrap();
        let (images, labels) = tiny.batch().unwrap();
        let weights = tiny.class_weights(0);
        let class_weights = weights.as_deref();
        let (part, part_labels) = (images.view().rows(1, 4).unwrap(), &labels[1..5]);
        learner.evaluate(Input::Images(images.view().into()), &labels, Which::Frozen).unwrap();
        let frozen = learner.features().unwrap();
        let draw = tiny.draw(labels.len(), 0);
        let batch = Batch { mix: draw.as_ref(), class_weights, ..Batch::new(images.view(), &labels) };
        for _ in 0..3 {
            learner.train_step(batch, &rates(), 1.0).unwrap();
        }
        let draw = unmixed(&tiny, labels.len());
        let batch = Batch { mix: draw.as_ref(), class_weights, ..Batch::new(images.view(), &labels) };
        // Evaluation drops nothing.
        let mut plain = TinyStep { dropout: 0.0, ..tiny.clone() }.learner().unwrap();
        plain.restore(&learner.snapshot().unwrap()).unwrap();
        plain.loss(batch).unwrap();
        let (expected, (_, text)) = (plain.features().unwrap(), plain.logits().unwrap());
        learner.gradients(batch).unwrap();
        let (dropped, trained) = (learner.features().unwrap(), gradients(&learner));
        let in_tower =
            tiny.prompts.is_some() || !tiny.targets.is_empty() && tiny.towers.contains(&Tower::Vision);
        let apart = relative_error(values(&expected), values(&frozen));
        assert_eq!(apart > 1e-3, in_tower, "{name}: {apart:e} from the frozen tower");
        for round in 0..2 {
            let what = |what: &str| format!("{name}, round {round}: {what}");
            learner.evaluate(Input::Images(images.view().into()), &labels, Which::Tuned).unwrap();
            assert_same(&learner.features().unwrap(), &expected, &what("features"));
            let (of_head, of_text) = learner.logits().unwrap();
            assert_same(&of_text, &text, &what("text logits"));
            if !tiny.head {
                assert_same(&of_head, &text, &what("logits of the head that mirrors the text features"));
            }
            learner.evaluate(Input::Images(part.into()), part_labels, Which::Tuned).unwrap();
            let rows = expected.view().rows(1, 4).unwrap().to_tensor(expected.dtype()).unwrap();
            assert_same(&learner.features().unwrap(), &rows, &what("features of a part"));
            learner.evaluate(Input::Images(images.view().into()), &labels, Which::Frozen).unwrap();
            assert_same(&learner.features().unwrap(), &frozen, &what("frozen features"));
            learner.gradients(batch).unwrap();
            assert_same(&learner.features().unwrap(), &dropped, &what("features of a training pass"));
            for ((found, expected), part) in
                gradients(&learner).iter().zip(&trained).zip(learner.param_names())
            {
                assert_same(found, expected, &what(&format!("gradient of {part}")));
            }
            learner.evaluate(Input::Images(part.into()), part_labels, Which::Frozen).unwrap();
        }
    }
}

/// The last batch of an epoch is smaller: it trains as it would in memory of its own size.
#[test]
fn a_smaller_batch_trains_as_it_would_alone() {
    for (name, tiny) in steps() {
        let mut learner = tiny.learner().unwrap();
        let (images, labels) = tiny.batch().unwrap();
        let weights = tiny.class_weights(0);
        let class_weights = weights.as_deref();
        let draw = tiny.draw(labels.len(), 0);
        let whole = Batch { mix: draw.as_ref(), class_weights, ..Batch::new(images.view(), &labels) };
        learner.gradients(whole).unwrap();
        let (part, part_labels) = (images.view().rows(1, 4).unwrap(), &labels[1..5]);
        let small = TinySizes { batch: part_labels.len(), ..tiny.sizes };
        let mut alone = TinyStep { sizes: small, ..tiny.clone() }.learner().unwrap();
        let draw = tiny.draw(part_labels.len(), 0);
        let batch = Batch { mix: draw.as_ref(), class_weights, ..Batch::new(part, part_labels) };
        learner.gradients(batch).unwrap();
        alone.gradients(batch).unwrap();
        for ((found, expected), part) in
            gradients(&learner).iter().zip(&gradients(&alone)).zip(learner.param_names())
        {
            assert_same(found, expected, &format!("{name}: gradient of {part}"));
        }
        let (found, expected) = (learner.stats().unwrap(), alone.stats().unwrap());
        assert_eq!(found.loss, expected.loss, "{name}");
        assert_eq!(found.parts.loss_triplet, expected.parts.loss_triplet, "{name}");
    }
}

/// The triplet loss is piecewise linear in the margin: its slope is the share of anchors that have a loss.
#[test]
fn the_triplets_of_these_tests_have_anchors_with_and_without_a_loss() {
    let with_triplets = steps().into_iter().filter(|(_, tiny)| tiny.objective.triplet != 0.0);
    let mut seen = 0;
    for (name, tiny) in with_triplets {
        let (images, labels) = tiny.batch().unwrap();
        let loss = |margin: f64| {
            let mut tiny = tiny.clone();
            tiny.objective.margin = margin;
            let mut learner = tiny.learner().unwrap();
            learner.loss(Batch::new(images.view(), &labels)).unwrap();
            learner.stats().unwrap().parts.loss_triplet
        };
        let (margin, step) = (tiny.objective.margin, 1e-4);
        let count = |margin: f64| (loss(margin + step) - loss(margin)) / step * labels.len() as f64;
        // The first image is the only one of its class.
        let (with, possible) = (count(margin), count(margin + 100.0));
        assert!((possible - (labels.len() - 1) as f64).abs() < 1e-6, "{name}: {possible} anchors");
        assert!((with - with.round()).abs() < 1e-6, "{name}: an anchor changes sides near the margin");
        assert!(with > 0.5 && with < possible - 0.5, "{name}: {with} of {possible} anchors have a loss");
        seen += 1;
    }
    assert_eq!(seen, 4);
}

/// A step of several batches is the step of all their images at once; what they leave of each other's
/// gradients does not depend on how many there are.
#[test]
fn several_batches_make_the_step_of_one() {
    let mut steps = steps();
    // Every batch draws its own masks, and looks for triplets among its own images.
    steps.retain(|(_, tiny)| tiny.dropout == 0.0 && tiny.mix.is_none() && tiny.objective.triplet == 0.0);
    for (name, tiny) in steps {
        let (images, labels) = tiny.batch().unwrap();
        let weights = tiny.class_weights(0);
        let class_weights = weights.as_deref();
        let mut whole = tiny.learner().unwrap();
        let batch = Batch { class_weights, ..Batch::new(images.view(), &labels) };
        whole.train_step(batch, &rates(), 1.0).unwrap();
        let mut split = TinyStep { accumulate: 4, ..tiny }.learner().unwrap();
        for (number, range) in [0..2, 2..4, 4..6, 6..7].into_iter().enumerate() {
            let part = images.view().rows(range.start, range.len()).unwrap();
            let share =
                MicroBatch { place: Place::of(number, 4), share: range.len() as f64 / labels.len() as f64 };
            let batch = Batch { number: number as u32, class_weights, ..Batch::new(part, &labels[range]) };
            split.train(batch, share, &rates(), 1.0).unwrap();
        }
        assert_eq!((whole.steps(), split.steps()), (1, 1), "{name}");
        let parts = whole.param_names();
        for ((found, expected), part) in gradients(&split).iter().zip(&gradients(&whole)).zip(parts) {
            assert_same(found, expected, &format!("{name}: gradient of {part}"));
        }
        let norms = [split.stats().unwrap().grad_norm, whole.stats().unwrap().grad_norm];
        assert!((norms[0] / norms[1] - 1.0).abs() < 1e-12, "{name}: {norms:?}");
    }
}

/// A batch draws by its number and by the run's seed, and the same again for the same number.
#[test]
fn dropout_draws_by_the_number_of_the_batch() {
    let with_dropout = steps().into_iter().filter(|(_, tiny)| tiny.dropout > 0.0);
    let mut seen = 0;
    for (name, tiny) in with_dropout {
        let mut learner = tiny.learner().unwrap();
        let (images, labels) = tiny.batch().unwrap();
        let mut loss = |number| learner.loss(Batch { number, ..Batch::new(images.view(), &labels) }).unwrap();
        let losses = [0, 1, 0].map(&mut loss);
        assert_eq!(losses[0], losses[2], "{name}");
        assert!((losses[0] / losses[1] - 1.0).abs() > 1e-4, "{name}: {losses:?}");
        seen += 1;
    }
    assert_eq!(seen, 4);
}

/// What is behind a frozen vision tower learns from cached features what it learns from the images.
#[test]
fn features_of_a_frozen_vision_tower_train_as_its_images_do() {
    let text = TinyStep {
        towers: vec![Tower::Text],
        targets: Target::ALL.to_vec(),
        dropout: 0.25,
        text_part: 6,
        accumulate: 2,
        ..TinyStep::new(TinySizes::ODD, 2)
    };
    let mixed = TinyStep { mix: Some(MixOn::Features), ..text.clone() };
    for (name, tiny) in [
        ("text tower", &text),
        ("features mixed", &mixed),
        ("no head", &TinyStep { head: false, ..text.clone() }),
    ] {
        let [mut by_images, mut by_features, mut plain] = [0; 3].map(|_| tiny.learner().unwrap());
        let (images, labels) = tiny.batch().unwrap();
        plain.evaluate(Input::Images(images.view().into()), &labels, Which::Frozen).unwrap();
        let (features, frozen) = (plain.features().unwrap(), plain.logits().unwrap().1);
        for number in 0..4 {
            let draw = tiny.draw(labels.len(), u64::from(number));
            let batch = |batch| Batch { mix: draw.as_ref(), number, ..batch };
            let half = MicroBatch { place: Place::of(number as usize % 2, 2), share: 0.5 };
            by_images.train(batch(Batch::new(images.view(), &labels)), half, &rates(), 1.0).unwrap();
            let features = batch(Batch::of_features(features.view(), &labels));
            by_features.train(features, half, &rates(), 1.0).unwrap();
            assert_eq!(by_images.stats().unwrap().loss, by_features.stats().unwrap().loss, "{name}");
        }
        for (a, b) in by_images.snapshot().unwrap().iter().zip(by_features.snapshot().unwrap()) {
            assert_eq!(values(a), values(&b), "{name}");
        }
        by_images.evaluate(Input::Images(images.view().into()), &labels, Which::Tuned).unwrap();
        by_features.evaluate(Input::Features(features.view().into()), &labels, Which::Tuned).unwrap();
        let [expected, found] = [by_images.logits().unwrap(), by_features.logits().unwrap()];
        assert_eq!(
            (values(&found.0), values(&found.1)),
            (values(&expected.0), values(&expected.1)),
            "{name}"
        );
        by_features.evaluate(Input::Features(features.view().into()), &labels, Which::Frozen).unwrap();
        let (_, text) = by_features.logits().unwrap();
        assert_eq!(values(&text), values(&frozen), "{name}: plain CLIP");
        assert_ne!(values(&found.1), values(&frozen), "{name}: the text tower was trained");
        let crops = Tensor::from_slice([labels.len(), 5], &vec![0u32; labels.len() * 5]).unwrap();
        let cropped = Batch { crops: Some(crops.view()), ..Batch::of_features(features.view(), &labels) };
        assert!(by_features.train_step(cropped, &rates(), 1.0).is_err(), "{name}: crops");
    }
    let mut in_vision = TinyStep::new(TinySizes::ODD, 2).learner().unwrap();
    let (features, labels) = (Tensor::zeros([4, 6], DType::F64), [0, 1, 2, 3]);
    let batch = Batch::of_features(features.view(), &labels);
    let error = in_vision.train_step(batch, &rates(), 1.0).unwrap_err().to_string();
    assert!(error.contains("features do not stand for images"), "{error}");
}
