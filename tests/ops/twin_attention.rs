//! Attention's kernels, run by the host twin, against their definition.

use super::clocked::Clocked;
use clip_engine::backend::cuda::{Cuda, LoraForm};
use clip_engine::backend::prelude::*;
use clip_engine::backend::{AttentionBackward, AttentionGradient, AttentionInput, AttentionShape};
use clip_engine::dev::check::difference::normal;
use clip_engine::dev::check::relative_error;
use clip_engine::dev::ops::Group;
use clip_engine::dev::ops::device::{Scope, rows};
use clip_engine::dev::twin::Twin;
use clip_engine::tensor::{DType, Tensor};
use std::sync::Arc;

fn cuda(dtype: DType, compute_capability: u32) -> Cuda {
    let twin = Arc::new(Twin::new(dtype, compute_capability).unwrap());
    Cuda::new(twin, dtype, LoraForm::default()).unwrap()
}

fn passes(dtype: DType, compute_capability: u32) {
    let rows = rows(&cuda(dtype, compute_capability), Scope::Quick, &[Group::Attention]).unwrap();
    let failed: Vec<_> = rows.iter().filter(|row| !row.passed()).collect();
    for row in &failed {
        println!("{} at {}: {:.1e}, bound {:.1e}", row.name, row.at, row.error, row.bound);
    }
    assert!(!rows.is_empty() && failed.is_empty(), "{} of {} rows failed", failed.len(), rows.len());
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn attention_in_f32() {
    passes(DType::F32, 90);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn attention_in_f16() {
    passes(DType::F16, 90);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn attention_in_bf16() {
    passes(DType::BF16, 90);
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn attention_without_tensor_cores() {
    passes(DType::F16, 75);
}

/// The message of a forward pass over 2 images of 5 tokens, 3 of them queries where `split`, with `o` that
/// has room for `rows` queries.
fn refusal(cuda: &Cuda, split: bool, shape: AttentionShape, rows: usize) -> Option<String> {
    let zeros = |dims: [usize; 3]| cuda.zeros(dims, cuda.compute_dtype()).unwrap();
    let queries = if split { 3 } else { 5 };
    let (qkv, q, kv) = (zeros([2, 5, 36]), zeros([2, 3, 12]), zeros([2, 5, 24]));
    let saved = cuda.attention_saved(2, shape.heads, queries, 5);
    let (mut saved, mut o) = (cuda.zeros(saved, DType::F32).unwrap(), zeros([2, rows, 12]));
    let input = if split { AttentionInput::Split { q: &q, kv: &kv } } else { AttentionInput::Packed(&qkv) };
    cuda.attention(input, shape, &mut saved, &mut o).err().map(|e| e.to_string())
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn what_does_not_fit_is_refused() {
    let cuda = cuda(DType::F32, 90);
    let shape = |heads, causal| AttentionShape { heads, causal };
    assert_eq!(refusal(&cuda, false, shape(3, true), 5), None);
    assert_eq!(refusal(&cuda, true, shape(3, false), 3), None);
    let problem = refusal(&cuda, false, shape(5, false), 5).unwrap();
    assert!(problem.contains("5 heads do not divide a width of 12"), "{problem}");
    let problem = refusal(&cuda, true, shape(3, true), 3).unwrap();
    assert!(problem.contains("causal"), "{problem}");
    let problem = refusal(&cuda, false, shape(3, false), 4).unwrap();
    assert!(problem.contains("o is [2, 4, 12], expected [2, 5, 12]"), "{problem}");
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_gradient_of_another_layout_is_refused() {
    let cuda = cuda(DType::F32, 90);
    let zeros = |dims: [usize; 3]| cuda.zeros(dims, DType::F32).unwrap();
    let (qkv, d_o, o) = (zeros([2, 5, 36]), zeros([2, 5, 12]), zeros([2, 5, 12]));
    let (saved, mut scratch) = (zeros([2, 3, 5]), zeros([2, 3, 5]));
    let (mut dq, mut dkv) = (zeros([2, 5, 12]), zeros([2, 5, 24]));
    let result = cuda.attention_backward(AttentionBackward {
        d_o: &d_o,
        o: &o,
        input: AttentionInput::Packed(&qkv),
        shape: AttentionShape { heads: 3, causal: false },
        saved: &saved,
        scratch: &mut scratch,
        gradient: AttentionGradient::Split { dq: &mut dq, dkv: &mut dkv },
    });
    let problem = result.unwrap_err().to_string();
    assert!(problem.contains("both be packed or both be split"), "{problem}");
}

/// Of one head that fits into a tile; both kernels give the same gradients.
#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn the_faster_kernel_for_short_sequences_is_timed_once_and_taken() {
    let shape = AttentionShape { heads: 2, causal: false };
    let numbers = |dims: [usize; 3], seed| {
        let values: Vec<f32> = normal(dims.iter().product(), seed).into_iter().map(|v| v as f32).collect();
        Tensor::from_slice(dims, &values).unwrap()
    };
    let gradients = [("whole", "attention_backward_mma_64"), ("mma_64", "attention_backward_mma_whole_64")]
        .map(|(slow, taken)| {
            let clocked = Arc::new(Clocked::new(slow));
            let cuda = Cuda::new(clocked.clone(), DType::F16, LoraForm::default()).unwrap();
            let upload = |tensor: Tensor| cuda.upload(tensor.view(), DType::F16).unwrap();
            let (qkv, d_o) = (upload(numbers([2, 50, 3 * 128], 1)), upload(numbers([2, 50, 128], 2)));
            let saved = cuda.attention_saved(2, 2, 50, 50);
            let [mut saved, mut scratch] = [(); 2].map(|()| cuda.empty(saved, DType::F32).unwrap());
            let mut o = cuda.empty([2, 50, 128], DType::F16).unwrap();
            let mut dqkv = cuda.empty([2, 50, 3 * 128], DType::F16).unwrap();
            let input = AttentionInput::Packed(&qkv);
            cuda.attention(input, shape, &mut saved, &mut o).unwrap();
            let mut backward = || {
                let (scratch, gradient) = (&mut scratch, AttentionGradient::Packed(&mut dqkv));
                let (d_o, o, saved) = (&d_o, &o, &saved);
                let args = AttentionBackward { d_o, o, input, shape, saved, scratch, gradient };
                cuda.attention_backward(args).unwrap();
                clocked.launched()
            };
            backward();
            let timings = clocked.timings();
            assert!(timings > 0);
            assert_eq!(backward(), [taken]);
            assert_eq!(clocked.timings(), timings, "the choice is remembered");
            let dqkv = cuda.download(&dqkv).unwrap().view().to_tensor(DType::F64).unwrap();
            dqkv.typed::<f64>().unwrap().to_vec()
        });
    let error = relative_error(&gradients[0], &gradients[1]);
    assert!(error > 0.0 && error < 2e-3, "the kernels differ by {error:e}");
}
