//! What stands behind the keys and values of a block that computes one row of each sequence: the operations that it is
//! made of, one after another.

use super::real::Real;
use super::*;

impl<T: Real> ClassTailOp for Cpu<T> {}
