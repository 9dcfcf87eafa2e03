//! Whether adapters are faster in the weights or beside them.

use super::*;

/// Whether a step's layers with adapters, forward and backward, take less time with these in the weights. Without room
/// to find out they stay beside them, which takes less.
pub fn folding_pays(cuda: &Cuda, layers: &[LoraSite<'_, Cuda>]) -> Result<bool> {
    let forms = [("folded", true), ("beside", false)];
    let key = format!("adapted layers of a step {} {}", cuda.real(), description(layers));
    let mut trial = None;
    let chosen = fastest(cuda, &key, &forms, &mut |folded| {
        if trial.is_none() {
            trial = Some(Trial::new(cuda, layers)?);
        }
        trial.as_mut().map_or(Ok(()), |trial| if folded { trial.folded(cuda) } else { trial.beside(cuda) })
    });
    match chosen {
        Err(BackendError::Cuda(error)) if matches!(*error, CudaError::OutOfMemory { .. }) => Ok(false),
        chosen => chosen,
    }
}

/// Sizes of the layers, those that occur several times with their number.
fn description(layers: &[LoraSite<'_, Cuda>]) -> String {
    let mut sizes: Vec<(String, usize)> = Vec::new();
    for LoraSite { rows, layer, lora } in layers {
        let (n, _) = layer.weight.matrix();
        let (k, rank) = (lora.a.shape.columns(), lora.b.shape.columns());
        let size = format!("{rows}x{k} to {n}, {} of {rank}", lora.columns.len());
        match sizes.iter_mut().find(|(known, _)| *known == size) {
            Some((_, count)) => *count += 1,
            None => sizes.push((size, 1)),
        }
    }
    let sizes: Vec<String> = sizes.into_iter().map(|(size, count)| format!("{count} times {size}")).collect();
    sizes.join("; ")
}

/// The layers of a step with inputs and outputs of their own: what is timed leaves nothing behind.
struct Trial<'a> {
    sites: Vec<TrialSite<'a>>,
    y: CudaTensor,
    dx: CudaTensor,
    u: CudaTensor,
    du: CudaTensor,
}

struct TrialSite<'a> {
    layer: &'a Linear<Cuda>,
    lora: Lora<'a, Cuda>,
    folded: Linear<Cuda>,
    x: CudaTensor,
    dy: CudaTensor,
    da: CudaTensor,
    db: CudaTensor,
}

impl<'a> Trial<'a> {
    fn new(cuda: &Cuda, layers: &[LoraSite<'a, Cuda>]) -> Result<Self> {
        let real = cuda.real();
        let site = |&LoraSite { rows, layer, lora }: &LoraSite<'a, Cuda>| -> Result<TrialSite<'a>> {
            let (n, k) = (layer.weight.matrix().0, lora.a.shape.columns());
            Ok(TrialSite {
                layer,
                lora,
                folded: Linear { weight: cuda.empty(layer.weight.shape, real)?, bias: None },
                x: cuda.zeros([rows, k], real)?,
                dy: cuda.zeros([rows, n], real)?,
                da: cuda.empty(lora.a.shape, DType::F32)?,
                db: cuda.empty(lora.b.shape, DType::F32)?,
            })
        };
        let sites = layers.iter().map(site).collect::<Result<Vec<_>>>()?;
        let most = |elements: fn(&TrialSite<'_>) -> usize| {
            cuda.empty([sites.iter().map(elements).max().unwrap_or(0)], real)
        };
        let width = |site: &TrialSite<'_>| site.x.shape.rows() * site.lora.a.shape.rows();
        let (y, dx) = (most(|site| site.dy.shape.elements())?, most(|site| site.x.shape.elements())?);
        let (u, du) = (most(width)?, most(width)?);
        Ok(Trial { sites, y, dx, u, du })
    }

    fn folded(&mut self, cuda: &Cuda) -> Result<()> {
        let folds = self.sites.iter_mut().map(|site| LoraFold {
            weight: &site.layer.weight,
            lora: site.lora,
            folded: &mut site.folded.weight,
        });
        cuda.lora_fold(&mut folds.collect::<Vec<_>>())?;
        for TrialSite { folded, x, dy, .. } in &self.sites {
            self.y.set_shape(dy.shape)?;
            self.dx.set_shape(x.shape)?;
            cuda.linear(x, folded, None, &mut self.y)?;
            cuda.linear_backward(dy, folded, &mut self.dx)?;
        }
        let gradients = self.sites.iter_mut().map(|site| LoraGradients {
            x: &site.x,
            dy: &site.dy,
            lora: site.lora,
            da: &mut site.da,
            db: &mut site.db,
        });
        cuda.lora_gradients(&mut gradients.collect::<Vec<_>>())
    }

    fn beside(&mut self, cuda: &Cuda) -> Result<()> {
        let Trial { sites, y, dx, u, du } = self;
        for TrialSite { layer, lora, x, dy, da, db, .. } in sites {
            let (rows, width) = (x.shape.rows(), lora.a.shape.rows());
            y.set_shape(dy.shape)?;
            dx.set_shape(x.shape)?;
            u.set_shape([rows, width].into())?;
            du.set_shape([rows, width].into())?;
            let lora = *lora;
            cuda.lora_linear(LoraLinear { x, seen: None, layer, lora, residual: None, u, y })?;
            let (dropout, dx) = (None, Some(&mut *dx));
            cuda.lora_linear_backward(LoraLinearBackward { dy, x, dropout, u, layer, lora, du, da, db, dx })?;
        }
        Ok(())
    }
}
