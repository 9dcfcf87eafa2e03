//! The parts of a low-rank update as kernels take them.

use super::*;

/// Low-rank updates on some of the segments of `out` columns that y consists of.
#[derive(Clone, Copy)]
pub struct Parts {
    pub count: usize,
    pub rank: usize,
    /// Columns of u: the ranks of all parts side by side.
    pub width: usize,
    /// Columns of a segment.
    pub out: usize,
    /// Four bits for each segment: its part plus 1, 0 for none.
    pub part_of_segment: usize,
    /// Four bits for each part: its segment.
    pub segment_of_part: usize,
    pub a: Address,
    pub b: Address,
    pub scale: f32,
}

impl Parts {
    /// Segments that a table of four bits each in an int has room for.
    const SEGMENTS: usize = 7;

    /// Lays the parts of `lora` out for the kernels, for a layer with `inputs` and `outputs` columns.
    pub fn of(op: &'static str, lora: Lora<'_, Cuda>, inputs: usize, outputs: usize) -> Result<Self> {
        let (count, shape) = (lora.columns.len(), lora.b.shape);
        let &[_, out, rank] = shape.dims() else {
            return Err(invalid(op, format!("b is {shape}, expected [parts, outputs, rank]")));
        };
        if count == 0 || rank == 0 || out == 0 || inputs == 0 {
            return Err(invalid(op, format!("an adapter with a of {} and b of {shape}", lora.a.shape)));
        }
        let segments = outputs / out;
        if !outputs.is_multiple_of(out) || segments > Parts::SEGMENTS {
            let most = Parts::SEGMENTS;
            return Err(invalid(
                op,
                format!("{outputs} columns are not 1 to {most} times the adapter's {out}"),
            ));
        }
        let (mut part_of_segment, mut segment_of_part) = (0, 0);
        for (part, &column) in lora.columns.iter().enumerate() {
            let segment = column / out;
            let placed = column.is_multiple_of(out) && segment < segments;
            if !placed || part_of_segment >> (4 * segment) & 15 != 0 {
                let problem = format!(
                    "part {part} at column {column}: parts lie on different multiples of {out} below {outputs}"
                );
                return Err(invalid(op, problem));
            }
            part_of_segment |= (part + 1) << (4 * segment);
            segment_of_part |= segment << (4 * part);
        }
        Ok(Parts {
            count,
            rank,
            width: count * rank,
            out,
            part_of_segment,
            segment_of_part,
            a: lora.a.typed(DType::F32)?,
            b: lora.b.typed(DType::F32)?,
            scale: lora.scale as f32,
        })
    }

    /// Bytes of A and B for `k` inputs, and of their gradients.
    pub fn bytes(&self, k: usize) -> usize {
        self.width * (k + self.out) * size_of::<f32>()
    }

    /// Floating-point operations of the products of `rows` rows with all of A and of B, for `k` inputs.
    pub fn flop(&self, rows: usize, k: usize) -> usize {
        2 * rows * self.width * (k + self.out)
    }

    /// Whether rows of K elements and of one segment consist of whole 16-byte packs of a 16-bit type.
    pub fn in_packs(&self, k: usize) -> bool {
        k.is_multiple_of(8) && self.out.is_multiple_of(8)
    }
}

fn invalid(op: &'static str, problem: String) -> BackendError {
    BackendError::Invalid { op, problem }
}
