//! Checks and benchmarks of the operations, each in a file named after it: on a device against the definition
//! ([`device`]), of its gradients against finite differences ([`gradients`]), and its time ([`mod@bench`]).

/// One operation on the device and on the host, each with its own of every argument: `&x`, `&mut x` and `*x` of a pair,
/// `?` before what may be none, `wanted => &mut x` for what is handed over where it is wanted. Other arguments are the
/// same on both sides. A struct by itself is made on both sides, a pair of it.
macro_rules! both {
    ($c:ident.$op:ident($Args:ident { $($fields:tt)* })) => {
        both!(@ (($c.device.$op) $Args) device () $($fields)*,)?;
        both!(@ (($c.cpu.$op) $Args) host () $($fields)*,)?
    };
    ($c:ident.$op:ident($($args:tt)*)) => {
        both!(@ ($c.device.$op) device () $($args)*,)?;
        both!(@ ($c.cpu.$op) host () $($args)*,)?
    };
    ($Args:ident { $($fields:tt)* }) => {
        Both { device: both!(@ $Args device () $($fields)*,), host: both!(@ $Args host () $($fields)*,) }
    };
    (@ $call:tt $side:ident $done:tt ,) => { both!(@ $call $side $done) };
    (@ (($($call:tt)*) $Args:ident) $side:ident ($($done:tt)*)) => { $($call)*($Args { $($done)* }) };
    (@ ($($call:tt)*) $side:ident ($($done:tt)*)) => { $($call)*($($done)*) };
    (@ $Args:ident $side:ident ($($done:tt)*)) => { $Args { $($done)* } };
    (@ $call:tt $side:ident ($($done:tt)*) $field:ident: $($rest:tt)*) => {
        both!(@ $call $side ($($done)* $field:) $($rest)*)
    };
    (@ $call:tt $side:ident ($($done:tt)*) &mut $x:ident, $($rest:tt)*) => {
        both!(@ $call $side ($($done)* &mut $x.$side,) $($rest)*)
    };
    (@ $call:tt $side:ident ($($done:tt)*) &$x:ident, $($rest:tt)*) => {
        both!(@ $call $side ($($done)* &$x.$side,) $($rest)*)
    };
    (@ $call:tt $side:ident ($($done:tt)*) *$x:ident, $($rest:tt)*) => {
        both!(@ $call $side ($($done)* $x.$side,) $($rest)*)
    };
    (@ $call:tt $side:ident ($($done:tt)*) ?$x:ident, $($rest:tt)*) => {
        both!(@ $call $side ($($done)* $x.as_ref().map(|x| &x.$side),) $($rest)*)
    };
    (@ $call:tt $side:ident ($($done:tt)*) $x:ident, $($rest:tt)*) => {
        both!(@ $call $side ($($done)* $x,) $($rest)*)
    };
    (@ $call:tt $side:ident ($($done:tt)*) $wanted:expr => &mut $x:ident, $($rest:tt)*) => {
        both!(@ $call $side ($($done)* $wanted.then_some(&mut $x.$side),) $($rest)*)
    };
    (@ $call:tt $side:ident ($($done:tt)*) $wanted:expr => &$x:ident, $($rest:tt)*) => {
        both!(@ $call $side ($($done)* $wanted.then_some(&$x.$side),) $($rest)*)
    };
    (@ $call:tt $side:ident ($($done:tt)*) $x:expr, $($rest:tt)*) => {
        both!(@ $call $side ($($done)* $x,) $($rest)*)
    };
}

pub mod bench;
pub mod device;
pub mod gradients;

mod accumulate;
mod activation;
mod adamw;
mod attention;
mod class_features;
mod class_tail;
mod copy_rows;
mod crop_resize;
mod dropout;
mod head_loss;
mod l2_norm;
mod layer_norm;
mod linear;
mod linear_activation;
mod lora_fold;
mod lora_gradients;
mod lora_linear;
mod mix_rows;
mod patch_embed;
mod prompts;
mod steps;
mod take_rows;
mod triplet;

use crate::backend::cpu::Cpu;
use crate::backend::prelude::*;
use crate::backend::{self, Backend};
use crate::dev::check::difference::normal;
use crate::dev::check::{Result, Row, relative_error};
use crate::tensor::{DType, Shape, Tensor};
use bench::{Bench, Ready, Visit};
use device::{Both, Checker, Pair, Scope, bound};
use gradients::{F64, added, dot, random, row, tensor, values, zeros};

/// What is known of an operation, or of whole steps, beside its definition; `B` is the device.
trait Operation<B: Backend> {
    /// Checks the device's form of it.
    fn check(c: &mut Checker<'_, B>) -> Result<()>;

    /// Checks the gradients of its definition, of which each becomes a row.
    fn gradients(_b: &F64, _rows: &mut Vec<Row>) -> Result<()> {
        Ok(())
    }

    /// Names of what can be timed apart from the rest.
    const BENCHES: &[&str] = &[];

    /// Makes the operations of one of [`Operation::BENCHES`] and hands them to `visit`.
    fn bench(_b: &Bench<'_, B>, _name: &str, _visit: &mut Visit<'_>) -> backend::Result<()> {
        Ok(())
    }
}

/// The list of operations: files of this folder, and the type in each that has what is known of it.
macro_rules! operations {
    ($($variant:ident $module:ident,)*) => {
        /// An operation, or whole steps, that can be checked and timed apart from the rest. The names are those of the
        /// files.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Group {
            $($variant,)*
        }

        impl Group {
            /// All of them, in the order in which they are checked.
            pub const ALL: [Group; [$(Group::$variant),*].len()] = [$(Group::$variant),*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Group::$variant => stringify!($module),)*
                }
            }

            fn check<B: Backend>(self, c: &mut Checker<'_, B>) -> Result<()> {
                match self {
                    $(Group::$variant => $module::Checks::check(c),)*
                }
            }

            fn gradients(self, b: &F64, rows: &mut Vec<Row>) -> Result<()> {
                match self {
                    $(Group::$variant => <$module::Checks as Operation<F64>>::gradients(b, rows),)*
                }
            }

            fn benches(self) -> &'static [&'static str] {
                match self {
                    $(Group::$variant => <$module::Checks as Operation<F64>>::BENCHES,)*
                }
            }

            fn bench<B: Backend>(self, b: &Bench<'_, B>, name: &str, visit: &mut Visit<'_>) -> backend::Result<()> {
                match self {
                    $(Group::$variant => $module::Checks::bench(b, name, visit),)*
                }
            }
        }
    };
}

operations! {
    LayerNorm layer_norm,
    Activation activation,
    Dropout dropout,
    CropResize crop_resize,
    PatchEmbed patch_embed,
    TakeRows take_rows,
    CopyRows copy_rows,
    Prompts prompts,
    L2Norm l2_norm,
    ClassFeatures class_features,
    MixRows mix_rows,
    HeadLoss head_loss,
    Triplet triplet,
    Accumulate accumulate,
    Adamw adamw,
    Attention attention,
    Linear linear,
    LinearActivation linear_activation,
    LoraLinear lora_linear,
    LoraFold lora_fold,
    LoraGradients lora_gradients,
    ClassTail class_tail,
    Steps steps,
}

impl Group {
    /// All operations but attention and linear layers.
    pub const SMALL: &[Group] = Group::ALL.split_at(Group::Attention as usize).0;

    /// Linear layers, and what has them in it.
    pub const LINEAR: &[Group] = &[
        Group::Linear,
        Group::LinearActivation,
        Group::LoraLinear,
        Group::LoraFold,
        Group::LoraGradients,
        Group::ClassTail,
    ];

    pub fn named(name: &str) -> Option<Self> {
        Group::ALL.into_iter().find(|group| group.name() == name)
    }
}
