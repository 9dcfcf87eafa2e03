//! What PyTorch computes, this engine computes: features, losses, gradients and AdamW steps of small
//! models, for every technique, against fixtures made by tools/reference.py, on the CPU and, by way of the
//! host twin, on the CUDA backend in f32; some on the CPU in bf16, beside PyTorch's own bf16.

use clip_engine::backend::Backend;
use clip_engine::backend::cpu::{Cpu, Isa};
use clip_engine::backend::cuda::{BiasForm, LoraForm};
use clip_engine::dev::{on_twin, on_unwatched_twin};

use clip_engine::dev::check::reference;
use clip_engine::tensor::DType;
use std::path::Path;

fn compare(size: &str, variant: &str, least_rows: usize) {
    compare_on(&Cpu::<f32>::new(), size, variant, least_rows);
}

fn compare_on<B: Backend>(backend: &B, size: &str, variant: &str, least_rows: usize) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference").join(size);
    let file = dir.join(format!("{variant}.safetensors"));
    let rows = reference::check(backend, &dir, &file).unwrap();
    let by = backend.describe();
    assert!(rows.len() >= least_rows, "{size}/{variant}: {} quantities compared on {by}", rows.len());
    let failed: Vec<String> = rows
        .iter()
        .filter(|row| !row.passed())
        .map(|row| {
            format!("{}: {:.2e} above {:.1e} (PyTorch: {:?})", row.name, row.error, row.bound, row.peer)
        })
        .collect();
    assert!(failed.is_empty(), "{size}/{variant} on {by}:\n{}", failed.join("\n"));
}

#[test]
fn lora_on_all_attention_layers() {
    compare("tiny", "lora", 102);
}

#[test]
fn lora_on_queries_and_values_only() {
    compare("tiny", "lora_q_v", 66);
}

#[test]
fn a_head_on_features_that_are_six_times_as_long() {
    compare("tiny", "lora_head_scaled", 50);
}

#[test]
fn lora_at_odd_sizes() {
    compare("odd", "lora", 102);
}

#[test]
fn lora_with_gelu_and_the_legacy_end_token() {
    compare("gelu", "lora", 78);
}

#[test]
fn head_only() {
    for size in ["tiny", "odd", "gelu"] {
        compare(size, "linear", 16);
    }
}

#[test]
fn pixels_mixed() {
    compare("tiny", "mixup_pixel", 96);
    compare("odd", "mixup_pixel", 60);
}

#[test]
fn features_mixed() {
    compare("tiny", "mixup_feat", 98);
    compare("odd", "mixup_feat", 62);
}

#[test]
fn mixed_with_a_text_loss() {
    compare("gelu", "mixup_pixel_text", 72);
    compare("gelu", "mixup_feat_text", 74);
}

/// The first image of every batch is the only one of its class. With the margin of 1 every other anchor has
/// a loss; with the smaller ones some have none.
#[test]
fn triplets() {
    compare("tiny", "triplet", 104);
    compare("odd", "triplet", 68);
    compare("tiny", "triplet_margin", 68);
    compare("gelu", "triplet_text", 80);
}

#[test]
fn prompts_that_are_replaced() {
    for size in ["tiny", "odd"] {
        compare(size, "vpt_shared_replace", 18);
        compare(size, "vpt_layer_replace", 18);
    }
    compare("gelu", "vpt_shared_replace", 18);
}

#[test]
fn prompts_that_accumulate() {
    for size in ["tiny", "odd"] {
        compare(size, "vpt_shared_accum", 18);
        compare(size, "vpt_layer_accum", 18);
    }
    compare("gelu", "vpt_layer_accum", 18);
}

#[test]
fn prompts_beside_lora() {
    compare("tiny", "vpt_shared_replace_lora", 106);
    compare("tiny", "vpt_layer_accum_lora", 70);
    compare("odd", "vpt_shared_accum_lora", 70);
    compare("odd", "vpt_layer_replace_lora", 70);
}

#[test]
fn lora_on_the_layers_of_the_mlp() {
    compare("tiny", "lora_fc", 68);
    compare("gelu", "lora_fc", 56);
    compare("gelu", "lora_mlp", 54);
}

#[test]
fn lora_on_every_layer() {
    compare("tiny", "lora_all", 140);
    compare("gelu", "lora_all", 104);
}

#[test]
fn rank_stabilised_lora() {
    compare("gelu", "lora_rslora", 56);
}

#[test]
fn lora_in_the_text_tower() {
    compare("tiny", "lora_text", 152);
    compare("odd", "lora_text", 152);
    compare("gelu", "lora_text_alone", 80);
}

#[test]
fn features_mixed_with_a_text_tower_that_is_trained() {
    compare("gelu", "mixup_feat_text_tower", 76);
}

/// The masks are those of the reference: Philox by seed, batch, tower, block and place in it.
#[test]
fn dropout_in_both_towers() {
    compare("odd", "lora_text_all", 212);
    compare("gelu", "lora_text_all", 176);
}

#[test]
fn clip_lora() {
    compare("tiny", "clip_lora", 110);
    compare("odd", "clip_lora", 110);
}

/// By `torch.nn.CrossEntropyLoss(weight=…, label_smoothing=…)`: the head's, and without a head the text's.
#[test]
fn classes_that_are_weighted_and_labels_that_are_smoothed() {
    compare("gelu", "linear_weighted", 16);
    compare("gelu", "clip_lora_weighted", 20);
}

/// Some of the steps have longer gradients than that, and the last batch is smaller.
#[test]
fn gradients_that_are_clipped() {
    compare("gelu", "lora_clipped", 56);
}

/// Five batches of an epoch make a step of three and one of two; the last batch is smaller.
#[test]
fn steps_of_several_batches() {
    compare("odd", "lora_accumulated", 68);
}

/// Prompts in two parts, and masks that differ between the batches of a step.
#[test]
fn clip_lora_in_steps_of_several_batches() {
    compare("gelu", "clip_lora_accumulated", 92);
}

/// In bf16, by every kind of instructions that this machine has. Once in f32: weights that bf16 has are the same numbers
/// there, so that the reference is right however far off bf16 is.
fn compare_in_bf16(size: &str, variant: &str, least_rows: usize) {
    compare(size, variant, least_rows);
    for isa in Isa::found() {
        compare_on(&Cpu::in_bf16(isa).unwrap(), size, variant, least_rows);
    }
}

#[test]
fn lora_in_bf16() {
    compare_in_bf16("odd-bf16", "lora", 102);
}

/// Every layer of both towers, rank 3, dropout, exact GELU, the legacy end token.
#[test]
fn lora_in_both_towers_in_bf16() {
    compare_in_bf16("gelu-bf16", "lora_text_all", 176);
}

#[test]
fn prompts_in_bf16() {
    compare_in_bf16("odd-bf16", "vpt_layer_accum", 18);
}

/// The same on the host twin, which other tests watch.
#[cfg(target_os = "linux")]
fn compare_on_twin(size: &str, variant: &str, least_rows: usize) {
    compare_on(&on_unwatched_twin(DType::F32, 90).unwrap(), size, variant, least_rows);
}

/// The same with the adapters folded into the weights in every step, as it is in f16.
#[cfg(target_os = "linux")]
fn compare_folded(size: &str, variant: &str, least_rows: usize) {
    let twin = on_unwatched_twin(DType::F32, 90).unwrap().with_lora_form(LoraForm::Folded).unwrap();
    compare_on(&twin, size, variant, least_rows);
}

#[cfg(target_os = "linux")]
#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn the_cuda_backend() {
    let watched = on_twin(DType::F32, 90).unwrap();
    compare_on(&watched, "odd", "lora", 102);
    compare_on(&watched, "tiny", "lora_head_scaled", 50);
    compare_folded("odd", "lora", 102);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "long: adapters around attention alone stay"]
fn the_cuda_backend_folds() {
    compare_folded("gelu", "lora_all", 104);
    compare_folded("odd", "vpt_shared_accum_lora", 70);
    // The bias of fc1, which has an adapter as fc2 has, left to the activation function.
    let twin = on_unwatched_twin(DType::F32, 90).unwrap().with_lora_form(LoraForm::Folded).unwrap();
    compare_on(&twin.with_bias_form(BiasForm::Activation).unwrap(), "gelu", "lora_all", 104);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "long: another size stays"]
fn the_cuda_backend_at_other_sizes() {
    compare_on_twin("tiny", "lora", 102);
    compare_on_twin("gelu", "lora", 78);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "long: CUDA's steps are the CPU's, and the CPU's are PyTorch's"]
fn the_cuda_backend_mixes() {
    compare_on_twin("odd", "mixup_pixel", 60);
    compare_on_twin("gelu", "mixup_feat_text", 74);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "long: CUDA's steps are the CPU's, and the CPU's are PyTorch's"]
fn the_cuda_backend_finds_triplets() {
    compare_on_twin("tiny", "triplet_margin", 68);
    compare_on_twin("gelu", "triplet_text", 80);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "long: CUDA's steps are the CPU's, and the CPU's are PyTorch's"]
fn the_cuda_backend_tunes_prompts() {
    for variant in ["vpt_layer_replace", "vpt_shared_accum"] {
        compare_on_twin("odd", variant, 18);
    }
    compare_on_twin("odd", "vpt_shared_accum_lora", 70);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "long: CUDA's steps are the CPU's, and the CPU's are PyTorch's"]
fn the_cuda_backend_adapts_every_layer() {
    compare_on_twin("gelu", "lora_all", 104);
    compare_on_twin("gelu", "lora_rslora", 56);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "long: CUDA's steps are the CPU's, and the CPU's are PyTorch's"]
fn the_cuda_backend_adapts_the_text_tower() {
    compare_on_twin("gelu", "lora_text_alone", 80);
    compare_on_twin("gelu", "mixup_feat_text_tower", 76);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "long: CUDA's steps are the CPU's, and the CPU's are PyTorch's"]
fn the_cuda_backend_drops_out() {
    compare_on_twin("gelu", "lora_text_all", 176);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "long: CUDA's steps are the CPU's, and the CPU's are PyTorch's"]
fn the_cuda_backend_clips_and_adds_up_batches() {
    compare_on_twin("gelu", "lora_clipped", 56);
    compare_on_twin("gelu", "clip_lora_accumulated", 92);
}
