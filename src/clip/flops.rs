//! Floating-point operations of a training step and of an evaluation, counted from the sizes.
//!
//! A multiply and an add are two operations; products and attention are counted, passes over single
//! elements are not.

use super::config::VisionConfig;
use crate::tune::{PromptSpec, Target};

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
    /// Prompts in front of every block, if there are any.
    pub prompts: Option<PromptSpec>,
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
    /// Evaluation of head and text logits alone, from features.
    pub probe_evaluation: f64,
}

impl Flops {
    pub fn of(s: &StepSizes<'_>) -> Flops {
        let t = &s.vision.tower;
        let (d, m, layers) = (t.width as f64, t.mlp as f64, t.layers);
        let tokens = |layer: usize| {
            s.prompts.map_or(s.vision.tokens(), |prompts| prompts.tokens(layer, s.vision.tokens())) as f64
        };
        let rank = s.rank as f64;
        let has = |target| f64::from(u8::from(s.targets.contains(&target) && s.rank > 0));
        let in_qkv = has(Target::Query) + has(Target::Key) + has(Target::Value);
        // Per token of a full block: the frozen products.
        let linear = 2.0 * (4.0 * d * d + 2.0 * d * m);
        let lora = 2.0 * 2.0 * d * rank * (in_qkv + has(Target::Output));
        // Of full blocks: tokens, and what attention's two products take.
        let full = 0..layers.saturating_sub(1);
        let full_tokens: f64 = full.clone().map(tokens).sum();
        let full_attention: f64 = full.map(|layer| 2.0 * 2.0 * tokens(layer).powi(2) * d).sum();
        // The last block: keys and values for every token, all else for one.
        let last = tokens(layers.saturating_sub(1));
        let last_linear = last * 2.0 * 2.0 * d * d + 2.0 * (2.0 * d * d + 2.0 * d * m);
        let last_attention = 2.0 * 2.0 * last * d;
        let in_kv = has(Target::Key) + has(Target::Value);
        let last_lora = 2.0 * 2.0 * d * rank * (last * in_kv + has(Target::Query) + has(Target::Output));
        let patches = 2.0 * (s.vision.tokens() as f64 - 1.0) * 3.0 * (s.vision.patch_size as f64).powi(2) * d;
        let (e, c) = (s.features as f64, s.classes as f64);
        let ends = 2.0 * d * e + 2.0 * 2.0 * e * c;
        let frozen = patches + full_tokens * linear + full_attention + last_linear + last_attention + ends;
        let adapters = full_tokens * lora + last_lora;
        let no_adapters = in_qkv + has(Target::Output) == 0.0;
        let backward = if no_adapters && s.prompts.is_none() {
            2.0 * e * c
        } else {
            // Through every frozen product, attention twice its forward; the adapters' input gradient and
            // both of their own.
            let through = full_tokens * linear + last_linear + 2.0 * (full_attention + last_attention);
            let behind = 2.0 * d * e + 3.0 * 2.0 * e * c;
            // Without prompts nothing in front of the first block's attention is trained.
            let first = tokens(0);
            let spared = match (s.prompts, in_qkv > 0.0) {
                (Some(_), _) => 0.0,
                (None, true) => first * (3.0 * 2.0 * d * d + 2.0 * d * rank * in_qkv),
                (None, false) => first * 4.0 * 2.0 * d * d,
            };
            through + 2.0 * adapters + behind - spared
        };
        let batch = s.batch as f64;
        Flops {
            forward: batch * (frozen + adapters),
            backward: batch * backward,
            evaluation: batch * frozen,
            probe: batch * 3.0 * 2.0 * e * c,
            probe_evaluation: batch * 2.0 * 2.0 * e * c,
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
            targets: &Target::ALL,
            prompts: None,
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

    /// A prompt costs what a patch costs in every block, in the forward pass as in the backward pass, which
    /// goes down to the first block's input; prompts that stay are more in every block.
    #[test]
    fn prompts_count_as_the_tokens_they_are() {
        use crate::tune::{PromptMode, PromptSharing};
        let config = ClipConfig::vit_b_32();
        let with = |mode: Option<PromptMode>| {
            let prompts = |mode| PromptSpec { count: 16, sharing: PromptSharing::Shared, mode };
            Flops::of(&StepSizes {
                vision: &config.vision,
                features: config.projection,
                classes: 102,
                batch: 2,
                rank: 0,
                targets: &[],
                prompts: mode.map(prompts),
            })
        };
        let (none, replace) = (with(None), with(Some(PromptMode::Replace)));
        let accumulate = with(Some(PromptMode::Accumulate));
        let (d, m) = (768.0, 3072.0);
        let of_token = 2.0 * (4.0 * d * d + 2.0 * d * m);
        let attention = |tokens: f64| 4.0 * tokens * tokens * d;
        // The last block computes keys and values of a token, and one row of attention.
        let last = 16.0 * (4.0 * d * d + 4.0 * d);
        let more = 11.0 * (16.0 * of_token + attention(66.0) - attention(50.0)) + last;
        assert!((replace.forward - none.forward - 2.0 * more).abs() < 1e-6 * more);
        assert_eq!(replace.forward, replace.evaluation);
        let (e, c) = (512.0, 102.0);
        let down = 11.0 * (66.0 * of_token + 2.0 * attention(66.0)) + 66.0 * (4.0 * d * d + 8.0 * d);
        let down = down + 2.0 * (2.0 * d * d + 2.0 * d * m) + 2.0 * d * e + 6.0 * e * c;
        assert!((replace.backward - 2.0 * down).abs() < 1e-6 * down);
        let longer: f64 = (0..11).map(|l| 16.0 * f64::from(l) * of_token).sum();
        let square = |l: i32| attention(66.0 + 16.0 * f64::from(l)) - attention(66.0);
        let longer = longer + (0..11).map(square).sum::<f64>() + 11.0 * last;
        assert!((accumulate.forward - replace.forward - 2.0 * longer).abs() < 1e-6 * longer);
    }
}
