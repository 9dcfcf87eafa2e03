//! Floating-point operations of a training step and of an evaluation, counted from the sizes.
//!
//! A multiply and an add are two operations; products and attention are counted, passes over single
//! elements are not.

use super::config::VisionConfig;
use crate::tune::Target;

/// What a step works on.
#[derive(Debug, Clone)]
pub struct StepSizes<'a> {
    pub vision: &'a VisionConfig,
    /// Width E of the features.
    pub features: usize,
    pub classes: usize,
    pub batch: usize,
    /// Rank and targets of the adapters; rank 0 for none.
    pub rank: usize,
    pub targets: &'a [Target],
}

/// Operations of one batch with the exact savings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flops {
    /// Forward pass of training.
    pub forward: f64,
    pub backward: f64,
    /// Forward pass of evaluation, adapters folded in.
    pub evaluation: f64,
    /// Training step of the head alone, from features to its gradient.
    pub probe: f64,
}

impl Flops {
    pub fn of(s: &StepSizes<'_>) -> Flops {
        let t = &s.vision.tower;
        let (d, m, tokens) = (t.width as f64, t.mlp as f64, s.vision.tokens() as f64);
        let (layers, rank) = (t.layers as f64, s.rank as f64);
        let has = |target| f64::from(u8::from(s.targets.contains(&target) && s.rank > 0));
        let in_qkv = has(Target::Query) + has(Target::Key) + has(Target::Value);
        // Per token of a full block: the frozen products, and attention's two.
        let linear = 2.0 * (4.0 * d * d + 2.0 * d * m);
        let attention = 2.0 * 2.0 * tokens * d;
        let lora = 2.0 * 2.0 * d * rank * (in_qkv + has(Target::Output));
        // The last block: keys and values for every token, all else for one.
        let last_linear = tokens * 2.0 * 2.0 * d * d + 2.0 * (2.0 * d * d + 2.0 * d * m);
        let last_attention = 2.0 * 2.0 * tokens * d;
        let in_kv = has(Target::Key) + has(Target::Value);
        let last_lora = 2.0 * 2.0 * d * rank * (tokens * in_kv + has(Target::Query) + has(Target::Output));
        let full = (layers - 1.0).max(0.0);
        let patches = 2.0 * (tokens - 1.0) * 3.0 * (s.vision.patch_size as f64).powi(2) * d;
        let (e, c) = (s.features as f64, s.classes as f64);
        let ends = 2.0 * d * e + 2.0 * 2.0 * e * c;
        let frozen = patches + full * tokens * (linear + attention) + last_linear + last_attention + ends;
        let adapters = full * tokens * lora + last_lora;
        let backward = if in_qkv + has(Target::Output) == 0.0 {
            2.0 * e * c
        } else {
            // Through every frozen product but those in front of the first block's attention; attention
            // twice its forward; the adapters' input gradient and both of their own.
            let first = if in_qkv > 0.0 { tokens * 3.0 * 2.0 * d * d } else { tokens * (4.0 * 2.0 * d * d) };
            let frozen =
                full * tokens * (linear + 2.0 * attention) + last_linear + 2.0 * last_attention - first;
            let lora = 2.0 * adapters - tokens * 2.0 * d * rank * in_qkv;
            frozen + lora + 2.0 * d * e + 3.0 * 2.0 * e * c
        };
        let batch = s.batch as f64;
        Flops {
            forward: batch * (frozen + adapters),
            backward: batch * backward,
            evaluation: batch * frozen,
            probe: batch * 3.0 * 2.0 * e * c,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::config::ClipConfig;

    /// ViT-B/32, batch 32, 102 classes without any saving: 282.2 GFLOP forward, 1.9 for the adapters,
    /// 275.8 backward, as PyTorch's counter has it. What the last block leaves out is subtracted by hand.
    #[test]
    fn counts_are_those_of_the_full_model_less_the_savings() {
        let config = ClipConfig::vit_b_32();
        let sizes = StepSizes {
            vision: &config.vision,
            features: config.projection,
            classes: 102,
            batch: 32,
            rank: 8,
            targets: &Target::ATTENTION,
        };
        let flops = Flops::of(&sizes);
        let (rows, d, m) = (32.0 * 49.0, 768.0, 3072.0);
        let linear = rows * 2.0 * (2.0 * d * d + 2.0 * d * m);
        let attention = rows * 4.0 * 50.0 * d;
        let lora = rows * 2.0 * 2.0 * d * 8.0 * 2.0;
        let expected = 282.2e9 - linear - attention;
        assert!((flops.evaluation - expected).abs() < 0.1e9, "{}", flops.evaluation);
        let expected = expected + 1.9e9 - lora;
        assert!((flops.forward - expected).abs() < 0.1e9, "{}", flops.forward);
        let expected = 275.8e9 - linear - 2.0 * attention - 2.0 * lora;
        assert!((flops.backward - expected).abs() < 0.2e9, "{}", flops.backward);
    }
}
