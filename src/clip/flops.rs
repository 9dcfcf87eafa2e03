//! Floating-point operations of a training step and of an evaluation, counted from the sizes.
//!
//! A multiply and an add are two operations; products and attention are counted, passes over single
//! elements are not.

use super::config::{TowerConfig, VisionConfig};
use crate::tune::{PromptSpec, Target};

/// Sizes that the operations of a step are counted from.
#[derive(Debug, Clone)]
pub struct StepSizes<'a> {
    /// The sizes of the vision tower.
    pub vision: &'a VisionConfig,
    /// Width E of the features.
    pub features: usize,
    /// Classes C of the head and of the text features.
    pub classes: usize,
    /// Images of a batch.
    pub batch: usize,
    /// Rank of the vision tower's adapters; 0 for none.
    pub rank: usize,
    /// The layers of every block that have an adapter.
    pub targets: &'a [Target],
    /// Prompts in front of every block, if there are any.
    pub prompts: Option<PromptSpec>,
}

/// A text tower that is trained.
#[derive(Debug, Clone)]
pub struct TextSizes<'a> {
    /// The sizes of its blocks.
    pub tower: &'a TowerConfig,
    /// Width E of the features.
    pub features: usize,
    /// Prompts of all classes.
    pub prompts: usize,
    /// Tokens of each prompt.
    pub tokens: usize,
    /// Prompts whose forward pass the backward pass computes once more.
    pub again: usize,
    /// Rank of its adapters; 0 for none.
    pub rank: usize,
    /// The layers of every block that have an adapter.
    pub targets: &'a [Target],
}

impl TextSizes<'_> {
    /// Operations of the forward and the backward pass over all prompts, whatever the batch.
    pub fn of_batch(&self) -> f64 {
        let a = Adapted { rank: self.rank, targets: self.targets, tower: self.tower };
        let (d, layers, tokens) = (self.tower.width as f64, self.tower.layers as f64, self.tokens as f64);
        let attention = 2.0 * 2.0 * tokens * d;
        let projection = 2.0 * d * self.features as f64;
        let forward = layers * tokens * (a.frozen() + attention + a.adapters()) + projection;
        let through = layers * tokens * (a.frozen() + 2.0 * attention + 2.0 * a.adapters()) + projection;
        let backward = through - tokens * a.spared(attention);
        (self.prompts + self.again) as f64 * forward + self.prompts as f64 * backward
    }
}

/// The linear layers of a block, per token.
struct Adapted<'a> {
    rank: usize,
    targets: &'a [Target],
    tower: &'a TowerConfig,
}

impl Adapted<'_> {
    fn has(&self, target: Target) -> bool {
        self.rank > 0 && self.targets.contains(&target)
    }

    /// The frozen products.
    fn frozen(&self) -> f64 {
        let (d, m) = (self.tower.width as f64, self.tower.mlp as f64);
        2.0 * (4.0 * d * d + 2.0 * d * m)
    }

    /// The adapter's two products where `target` has one.
    fn adapter(&self, target: Target) -> f64 {
        let (inputs, outputs) = target.sizes(self.tower.width, self.tower.mlp);
        if self.has(target) { 2.0 * ((inputs + outputs) * self.rank) as f64 } else { 0.0 }
    }

    /// The adapters' products of all layers.
    fn adapters(&self) -> f64 {
        Target::ALL.into_iter().map(|target| self.adapter(target)).sum()
    }

    /// Operations per token that the backward pass leaves out in the first block: all in front of its first
    /// adapter. `attention`: its two products for one token.
    fn spared(&self, attention: f64) -> f64 {
        let (d, m, rank) = (self.tower.width as f64, self.tower.mlp as f64, self.rank as f64);
        let in_qkv = [Target::Query, Target::Key, Target::Value].into_iter().filter(|&t| self.has(t)).count();
        let projections = 3.0 * 2.0 * d * d;
        let out = projections + 2.0 * attention + 2.0 * d * d;
        match in_qkv {
            1.. => projections + 2.0 * d * rank * in_qkv as f64,
            0 if self.has(Target::Output) => out + 2.0 * d * rank,
            0 if self.has(Target::Expand) => out + 2.0 * d * m + 2.0 * d * rank,
            0 => out + 2.0 * 2.0 * d * m + 2.0 * m * rank,
        }
    }
}

/// Operations of one batch with the exact savings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flops {
    /// Forward pass of training.
    pub forward: f64,
    /// Backward pass of training, down to the first trained tensor.
    pub backward: f64,
    /// Forward pass of evaluation, adapters folded in.
    pub evaluation: f64,
    /// Training step of the head alone, from features to its gradient.
    pub probe: f64,
    /// Evaluation of head and text logits alone, from features.
    pub probe_evaluation: f64,
}

impl Flops {
    /// Counts what these sizes come to. A text tower that is trained comes on top: [`TextSizes::of_batch`].
    pub fn of(s: &StepSizes<'_>) -> Flops {
        let t = &s.vision.tower;
        let (d, m, layers) = (t.width as f64, t.mlp as f64, t.layers);
        let tokens = |layer: usize| {
            s.prompts.map_or(s.vision.tokens(), |prompts| prompts.tokens(layer, s.vision.tokens())) as f64
        };
        let block = Adapted { rank: s.rank, targets: s.targets, tower: t };
        let (linear, lora) = (block.frozen(), block.adapters());
        // Of full blocks: tokens, and what attention's two products take.
        let full = 0..layers.saturating_sub(1);
        let full_tokens: f64 = full.clone().map(tokens).sum();
        let full_attention: f64 = full.map(|layer| 2.0 * 2.0 * tokens(layer).powi(2) * d).sum();
        // The last block: keys and values for every token, all else for one.
        let last = tokens(layers.saturating_sub(1));
        let last_linear = last * 2.0 * 2.0 * d * d + 2.0 * (2.0 * d * d + 2.0 * d * m);
        let last_attention = 2.0 * 2.0 * last * d;
        let in_kv = block.adapter(Target::Key) + block.adapter(Target::Value);
        let last_lora = last * in_kv + (lora - in_kv);
        let patches = 2.0 * (s.vision.tokens() as f64 - 1.0) * 3.0 * (s.vision.patch_size as f64).powi(2) * d;
        let (e, c) = (s.features as f64, s.classes as f64);
        let ends = 2.0 * d * e + 2.0 * 2.0 * e * c;
        let frozen = patches + full_tokens * linear + full_attention + last_linear + last_attention + ends;
        let adapters = full_tokens * lora + last_lora;
        let backward = if lora == 0.0 && s.prompts.is_none() {
            2.0 * e * c
        } else {
            // Through every frozen product, attention twice its forward; the adapters' input gradient and
            // both of their own.
            let through = full_tokens * linear + last_linear + 2.0 * (full_attention + last_attention);
            let behind = 2.0 * d * e + 3.0 * 2.0 * e * c;
            // Without prompts nothing in front of the first block's adapters is trained.
            let first = tokens(0);
            let spared = match s.prompts {
                Some(_) => 0.0,
                None => first * block.spared(2.0 * 2.0 * first * d),
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
            targets: &Target::ATTENTION,
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

    /// An adapter of the MLP costs its two products per token, twice that in the backward pass; where it is the
    /// only one, all that lies in front of it in the first block is left out.
    #[test]
    fn adapters_of_the_mlp_count_by_their_sizes() {
        let config = ClipConfig::vit_b_32();
        let of = |targets: &[Target]| {
            let (vision, features) = (&config.vision, config.projection);
            let rank = if targets.is_empty() { 0 } else { 4 };
            Flops::of(&StepSizes { vision, features, classes: 10, batch: 1, rank, targets, prompts: None })
        };
        let (d, m) = (768.0, 3072.0);
        let each = (11.0 * 50.0 + 1.0) * 2.0 * 4.0 * (d + m);
        let (none, both, second) =
            (of(&[]), of(&[Target::Expand, Target::Contract]), of(&[Target::Contract]));
        assert!((both.forward - none.forward - 2.0 * each).abs() < 1e-6 * each);
        assert!((second.forward - none.forward - each).abs() < 1e-6 * each);
        // Down to fc1's weights and the gradient of its input, and fc2's own adapter.
        let further = 50.0 * (2.0 * d * m + 2.0 * 4.0 * (m - d)) + 2.0 * each;
        assert!((both.backward - second.backward - further).abs() < 1e-6 * further, "{further}");
    }

    /// CLIP's text tower at 77 tokens: 2·(4·512² + 2·512·2048)·77 for the products of a block and 4·77²·512 for
    /// its attention, forward; the backward pass twice the attention and all products but the first three.
    #[test]
    fn the_text_tower_counts_by_its_prompts() {
        let config = ClipConfig::vit_b_32();
        let sizes = TextSizes {
            tower: &config.text.tower,
            features: 512,
            prompts: 3,
            tokens: 77,
            again: 0,
            rank: 2,
            targets: &[Target::Query, Target::Key, Target::Value],
        };
        let (d, m, n) = (512.0, 2048.0, 77.0);
        let (frozen, attention) = (n * 2.0 * (4.0 * d * d + 2.0 * d * m), 4.0 * n * n * d);
        let lora = n * 3.0 * 2.0 * 2.0 * d * 2.0;
        let forward = 12.0 * (frozen + attention + lora) + 2.0 * d * 512.0;
        let first = n * (3.0 * 2.0 * d * d + 3.0 * 2.0 * d * 2.0);
        let backward = 12.0 * (frozen + 2.0 * attention + 2.0 * lora) + 2.0 * d * 512.0 - first;
        let expected = 3.0 * (forward + backward);
        assert!((sizes.of_batch() - expected).abs() < 1e-9 * expected);
        let again = TextSizes { again: 2, ..sizes };
        assert!((again.of_batch() - expected - 2.0 * forward).abs() < 1e-9 * expected);
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
