//! The gradient checks pass, and the exact savings change nothing.

use clip_engine::backend::Activation;
use clip_engine::clip::vision::Savings;
use clip_engine::dev::check::relative_error;
use clip_engine::dev::check::step::{TinySizes, TinyStep, adapter_techniques, techniques};
use clip_engine::train::learner::{Batch, Input, Which};
use clip_engine::tune::Target;

#[test]
fn every_operation_passes_its_finite_differences() {
    for row in clip_engine::dev::ops::gradients::check().unwrap() {
        assert!(row.passed(), "{} at {}: {:e} above {:e}", row.name, row.at, row.error, row.bound);
    }
}

/// Gradient of every trained tensor under its own name, whatever the adapters are stacked with.
fn gradients(tiny: &TinyStep) -> Vec<(String, Vec<f64>)> {
    let mut learner = tiny.learner().unwrap();
    let (images, labels) = tiny.batch().unwrap();
    let (draw, weights) = (tiny.draw(labels.len(), 0), tiny.class_weights(0));
    let class_weights = weights.as_deref();
    learner
        .gradients(Batch { mix: draw.as_ref(), class_weights, ..Batch::new(images.view(), &labels) })
        .unwrap();
    let head = ["head.weight", "head.bias"].into_iter().zip([&learner.head().weight, &learner.head().bias]);
    let head = head.filter(|_| tiny.head);
    let prompts = learner.prompts().map(|prompts| ("prompts", &prompts.param));
    let mut named: Vec<_> = head
        .chain(prompts)
        .map(|(name, p)| (name.to_string(), p.gradient.typed::<f64>().unwrap().to_vec()))
        .collect();
    let vision = learner.lora().iter().enumerate().map(|(l, block)| (format!("{l}"), block));
    let text = learner.text_lora().iter().enumerate().map(|(l, block)| (format!("text.{l}"), block));
    for (l, block) in vision.chain(text) {
        for layer in block.adapters() {
            let n = layer.targets.len();
            let parts = |p: &clip_engine::tensor::Tensor| p.typed::<f64>().unwrap().to_vec();
            let (a, b) = (parts(&layer.a.gradient), parts(&layer.b.gradient));
            for (i, target) in layer.targets.iter().enumerate() {
                named.push((format!("{l}.{target}.A"), a[i * a.len() / n..(i + 1) * a.len() / n].to_vec()));
                named.push((format!("{l}.{target}.B"), b[i * b.len() / n..(i + 1) * b.len() / n].to_vec()));
            }
        }
    }
    named.sort_by(|a, b| a.0.cmp(&b.0));
    named
}

#[test]
fn savings_leave_every_gradient_as_it_is() {
    let lora = [&Target::ATTENTION[..], &[Target::Key, Target::Output], &[Target::Query], &[Target::Output]];
    let lora = lora.map(|targets| {
        let tiny = TinyStep { targets: targets.to_vec(), ..TinyStep::new(TinySizes::ODD, 3) };
        (format!("{targets:?}"), tiny)
    });
    let sizes = TinySizes { batch: 7, ..TinySizes::ODD };
    let mut techniques = techniques(sizes, 3);
    // Without the savings the last block reads more rows, and dropout draws for these.
    techniques.extend(adapter_techniques(sizes, 2).into_iter().filter(|(_, tiny)| tiny.dropout == 0.0));
    let techniques = techniques.into_iter().map(|(name, tiny)| (name.to_string(), tiny));
    for (technique, tiny) in lora.into_iter().chain(techniques) {
        let full = gradients(&TinyStep { savings: Savings::NONE, ..tiny.clone() });
        for savings in [
            Savings::ALL,
            Savings { class_token_only: true, stop_at_first_trained: false },
            Savings { class_token_only: false, stop_at_first_trained: true },
        ] {
            let saved = gradients(&TinyStep { savings, ..tiny.clone() });
            assert_eq!(saved.len(), full.len());
            for ((name, saved), (same, full)) in saved.iter().zip(&full) {
                assert_eq!(name, same);
                let error = relative_error(saved, full);
                assert!(error < 1e-12, "{name} with {savings:?} and {technique}: {error:e}");
                assert!(full.iter().any(|&g| g != 0.0), "{name} has a gradient");
            }
        }
    }
}

#[test]
fn folded_adapters_evaluate_as_unfolded_ones_train() {
    // Some targets leave a layer of a block, or all layers of the last, without an adapter.
    let targets: [&[Target]; 6] = [
        &Target::ATTENTION,
        &[Target::Query, Target::Value],
        &[Target::Key],
        &[Target::Output],
        &Target::ALL,
        &[Target::Contract],
    ];
    for (class_token_only, targets) in [true, false].into_iter().flat_map(|c| targets.map(|t| (c, t))) {
        let tiny = TinyStep {
            activation: Activation::Gelu,
            targets: targets.to_vec(),
            savings: Savings { class_token_only, stop_at_first_trained: true },
            ..TinyStep::new(TinySizes::ODD, 3)
        };
        let mut learner = tiny.learner().unwrap();
        let (images, labels) = tiny.batch().unwrap();
        let loss = learner.loss(Batch::new(images.view(), &labels)).unwrap();
        let features = learner.features().unwrap();
        learner.evaluate(Input::Images(images.view().into()), &labels, Which::Tuned).unwrap();
        let folded = learner.features().unwrap();
        let error = relative_error(folded.typed().unwrap(), features.typed().unwrap());
        assert!(error < 1e-13, "features: {error:e}");
        assert!((learner.stats().unwrap().loss - loss).abs() < 1e-13);
        // A smaller batch through the same buffers.
        let part = images.view().rows(1, 2).unwrap();
        learner.evaluate(Input::Images(part.into()), &labels[1..3], Which::Tuned).unwrap();
        let two = learner.features().unwrap();
        let error = relative_error(two.typed().unwrap(), &features.typed::<f64>().unwrap()[6..18]);
        assert!(error < 1e-13, "features of a part: {error:e}");
    }
}
