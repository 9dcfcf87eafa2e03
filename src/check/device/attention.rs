//! Checks of attention.

use super::{Checker, Result};
use crate::backend::Backend;

pub(super) fn check<B: Backend>(_c: &mut Checker<'_, B>) -> Result<()> {
    Ok(())
}
