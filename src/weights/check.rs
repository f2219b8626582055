//! Whether a folder holds exactly the tensors that the model code asks for.

use std::collections::{HashMap, HashSet};

use super::folder::ModelFolder;
use super::words::listed;
use super::{ModelError, Result};
use crate::tensor::{Component, Shape};

/// A tensor the model needs, by canonical name.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Where it is looked for.
    pub component: Component,
    /// Its canonical name.
    pub name: &'a str,
    /// Its extents.
    pub shape: &'a Shape,
}

/// Compares a folder with what is expected of it; dtypes may be any float.
///
/// Fails with the first ten tensors, and the number, of each kind: missing, of another shape, not of a float
/// dtype, unexpected. Tensors in `allowed_unused` may be there or not, in any shape and dtype.
pub fn check(folder: &ModelFolder, expected: &[Expected], allowed_unused: &[(Component, &str)]) -> Result<()> {
    let wanted: HashMap<(Component, &str), &Shape> = expected.iter().map(|e| ((e.component, e.name), e.shape)).collect();
    let allowed: HashSet<&(Component, &str)> = allowed_unused.iter().collect();
    let missing: Vec<String> = expected
        .iter()
        .filter(|e| folder.recipe(e.component, e.name).is_none())
        .map(|e| format!("{}: {} {}", e.component, folder.shown(e.component, e.name), e.shape))
        .collect();
    let (mut shaped, mut typed, mut unexpected) = (Vec::new(), Vec::new(), Vec::new());
    for component in [Component::Dit, Component::Vae, Component::Qwen] {
        for (stored, spec) in folder.tensors(component) {
            let name = folder.shown(component, stored);
            let Some(shape) = wanted.get(&(component, stored)) else {
                if !allowed.contains(&(component, stored)) {
                    unexpected.push(format!("{component}: {name} {spec}"));
                }
                continue;
            };
            if **shape != spec.shape {
                shaped.push(format!("{component}: {name} is {}, not {shape}", spec.shape));
            }
            if !spec.dtype.is_float() {
                typed.push(format!("{component}: {name} is {}", spec.dtype));
            }
        }
    }
    let faults = [
        listed("missing", &missing),
        listed("of another shape", &shaped),
        listed("not of a float dtype", &typed),
        listed("unexpected", &unexpected),
    ]
    .concat();
    if faults.is_empty() {
        return Ok(());
    }
    Err(ModelError::new(format!(
        "{}: its tensors are not those of Step1X-Edit {}; use the files of the official release{faults}",
        folder.dir.display(),
        folder.version
    )))
}
