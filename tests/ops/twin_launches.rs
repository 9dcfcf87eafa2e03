//! What launchers say of their kernels: the bytes are those that the host twin sees them move, the floating-point
//! operations those that are counted without a device.

use crate::clocked::Clocked;
use clip_engine::backend::cuda::driver::Command;
use clip_engine::backend::cuda::{BiasForm, Cuda, LoraForm};
use clip_engine::backend::prelude::*;
use clip_engine::backend::{Activation, Kept, Linear, Result};
use clip_engine::dev::bench::Op;
use clip_engine::dev::listing::Listing;
use clip_engine::dev::ops::bench::{Made, Sizes, each};
use clip_engine::dev::twin::Twin;
use clip_engine::tensor::DType;
use std::sync::Arc;

const SIZES: Sizes = Sizes {
    batch: 2,
    tokens: 5,
    width: 64,
    heads: 1,
    mlp: 128,
    features: 32,
    classes: 12,
    rank: 8,
    side: 32,
    patch: 16,
};

/// How much of the images it reads is known on the device only, and the twin does not follow single bytes.
const BYTES_NOT_KNOWN: &str = "crop_resize";

/// Kernels compute the scores again: five products in the place of four.
const COMPUTES_AGAIN: &str = "attention_backward";

/// The same of one query for each image, among other things.
const COMPUTES_ONE_AGAIN: &str = "class_tail_backward";

/// Counted as a framework does it, part by part, and computed for all parts at once.
const FLOP_OF_OTHERS: &str = "lora_linear, unfused";

/// Counters by which the last block finds itself, and numbers of the optimizer.
const SLACK_OF_LAUNCH: u64 = 64;

/// Of a table's entry for a layer, whose fields the compiler reads one by one or several at a time.
const SLACK_OF_ENTRY: u64 = 24;

/// A line for each operation that does something else than its launcher says.
fn differences(dtype: DType) -> Vec<String> {
    let twin = Arc::new(Twin::new(dtype, 90).unwrap());
    let mut found = Vec::new();
    for form in [LoraForm::Fused, LoraForm::Gemm] {
        let (cuda, listing) = Listing::around(&Cuda::new(twin.clone(), dtype, form).unwrap()).unwrap();
        let mut visit = |mut op: Op<'_>| -> Result<()> {
            let before = twin.moved();
            (op.run)()?;
            let moved = twin.moved() - before;
            cuda.capture(|| (op.run)())?;
            let commands = listing.last_graph();
            let launches = commands.iter().filter(|command| matches!(command, Command::Launch(_)));
            let bytes: usize = launches.clone().map(|launch| launch.work().bytes).sum();
            let flop: usize = commands.iter().map(|c| c.work().flop + c.work().tensor_flop).sum();
            let entries = if op.name == "lora_fold" || op.name == "lora_gradients" { 24 } else { 0 };
            let slack = (SLACK_OF_LAUNCH + SLACK_OF_ENTRY * entries) * launches.count() as u64;
            let what = format!("{form:?} {} at {}", op.name, op.at);
            if (bytes as u64).abs_diff(moved) > slack && op.name != BYTES_NOT_KNOWN {
                found.push(format!("{what}: {moved} bytes moved, {bytes} said"));
            }
            let counted = match op.name {
                COMPUTES_AGAIN => op.flop / 4.0 * 5.0,
                COMPUTES_ONE_AGAIN => op.flop + (2 * SIZES.batch * SIZES.tokens * SIZES.width) as f64,
                _ => op.flop,
            };
            if flop as f64 != counted && op.name != FLOP_OF_OTHERS {
                found.push(format!("{what}: {counted} FLOP counted, {flop} said"));
            }
            Ok(())
        };
        let made = if form == LoraForm::Gemm { Made::Lora } else { Made::All };
        each(&cuda, &SIZES, made, &mut visit).unwrap();
    }
    found
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn kernels_move_and_multiply_what_their_launchers_say() {
    for dtype in [DType::F16, DType::F32] {
        let found = differences(dtype);
        assert!(found.is_empty(), "{dtype}: {found:#?}");
    }
}

#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn the_class_tail_is_one_launch_where_that_is_faster() {
    for (slow, whole) in [("class_tail", false), ("l2_norm", true)] {
        let clocked = Arc::new(Clocked::new(slow));
        let cuda = Cuda::new(clocked.clone(), DType::F16, LoraForm::Auto).unwrap();
        let mut visit = |mut op: Op<'_>| -> Result<()> {
            (op.run)()?;
            let timings = clocked.timings();
            assert!(timings > 0);
            clocked.launched();
            (op.run)()?;
            assert_eq!(clocked.timings(), timings, "the choice is remembered");
            let launched = clocked.launched();
            let tails = launched.iter().filter(|kernel| kernel.starts_with("class_tail")).count();
            assert_eq!((tails, launched.len() == 1), (usize::from(whole), whole), "{slow}: {launched:?}");
            Ok(())
        };
        each(&cuda, &SIZES, Made::Group("class_tail"), &mut visit).unwrap();
    }
}

/// The names of the kernels behind the product of the layers that are timed.
#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn a_bias_is_added_where_that_takes_less_time() {
    let forms = [
        // The backward pass counts, too.
        ("activation_bias_backward", BiasForm::Product, ["activation_quick_gelu", "activation_gelu"]),
        ("activation_backward", BiasForm::Activation, ["activation_bias_quick_gelu", "activation_bias_gelu"]),
    ];
    for (slow, form, kernels) in forms {
        let clocked = Arc::new(Clocked::new(slow));
        let cuda = Cuda::new(clocked.clone(), DType::F16, LoraForm::Auto).unwrap();
        for (cuda, timed) in [(&cuda, true), (&cuda, false), (&cuda.with_bias_form(form).unwrap(), false)] {
            let (before, mut launched) = (clocked.timings(), Vec::new());
            let mut visit = |mut op: Op<'_>| -> Result<()> {
                clocked.launched();
                (op.run)()?;
                launched.extend(clocked.launched());
                Ok(())
            };
            each(cuda, &SIZES, Made::Group("linear_activation"), &mut visit).unwrap();
            assert_eq!(launched, kernels, "{slow}");
            assert_eq!(clocked.timings() > before, timed, "{slow}");
        }
    }
}

/// Where a pack would be of two rows, or there is no bias, there is one form.
#[test]
#[cfg_attr(not(cxx), ignore = "needs c++")]
fn rows_of_no_whole_packs_leave_no_bias_to_the_function() {
    let clocked = Arc::new(Clocked::new("none"));
    let cuda = Cuda::new(clocked.clone(), DType::F16, LoraForm::Auto).unwrap();
    for (columns, has_bias) in [(12, true), (16, false)] {
        for cuda in [&cuda, &cuda.with_bias_form(BiasForm::Activation).unwrap()] {
            let zeros = |shape: [usize; 2]| cuda.zeros(shape, DType::F16).unwrap();
            let bias = has_bias.then(|| cuda.zeros([columns], DType::F16).unwrap());
            let layer = Linear { weight: zeros([columns, 8]), bias };
            let (x, mut z, mut g) = (zeros([3, 8]), zeros([3, columns]), zeros([3, columns]));
            let kept = cuda.linear_activation(&x, &layer, Activation::Gelu, &mut z, &mut g).unwrap();
            assert_eq!((kept, clocked.timings()), (Kept::Sum, 0), "{columns}");
        }
    }
}
