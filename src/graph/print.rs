//! The graph as text: one line a node, equal blocks of a stack shown once.

use std::fmt;

use super::{Graph, Node, TensorId};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for stage in &self.stages {
            let times = if stage.repeat > 1 { format!(" x{}", stage.repeat) } else { String::new() };
            writeln!(f, "stage {}{times}: {} nodes", stage.name, stage.nodes.len())?;
            let lines: Vec<Line> = self.nodes[stage.nodes.clone()].iter().map(|n| self.line(n)).collect();
            write_folded(f, &lines)?;
        }
        Ok(())
    }
}

/// A node's line, with the block of a stack that it belongs to: `double_blocks` and 3 for `double_blocks.3.img_attn.qkv`.
struct Line {
    block: Option<(String, usize)>,
    text: String,
}

impl Line {
    /// The text with the block's number taken out, equal for equal blocks.
    fn pattern(&self) -> String {
        match &self.block {
            Some((stack, i)) => self.text.replace(&format!("{stack}.{i}."), &format!("{stack}.#.")),
            None => self.text.clone(),
        }
    }
}

impl Graph {
    fn line(&self, node: &Node) -> Line {
        let list = |ids: &[TensorId]| ids.iter().map(|&id| self.describe(id)).collect::<Vec<_>>().join(", ");
        let attributes = node.op.attributes();
        let op = if attributes.is_empty() { node.op.kind().to_string() } else { format!("{}({attributes})", node.op.kind()) };
        let text = format!("  {}: {op} {} -> {}", node.name, list(&node.inputs), list(&node.outputs));
        Line { block: block_of(&node.name), text }
    }

    /// Storage name, type, extents and, of a part, where it begins.
    fn describe(&self, id: TensorId) -> String {
        let (tensor, storage) = (self.tensor(id), self.storage_of(id));
        let whole = tensor.spec.shape.elements() == storage.spec.shape.elements();
        let stride = storage.spec.shape.cols();
        let part = if whole { String::new() } else { format!("@{},{}", tensor.offset / stride, tensor.offset % stride) };
        format!("{}{part} {}", storage.name, tensor.spec)
    }
}

/// The first numbered part of a name.
fn block_of(name: &str) -> Option<(String, usize)> {
    let parts: Vec<&str> = name.split('.').collect();
    let at = parts.iter().position(|p| p.parse::<usize>().is_ok())?;
    Some((parts[..at].join("."), parts[at].parse().ok()?))
}

/// Writes the lines; a block whose lines are those of the block before it but for its number is only counted.
fn write_folded(f: &mut fmt::Formatter, lines: &[Line]) -> fmt::Result {
    let groups: Vec<&[Line]> = lines.chunk_by(|a, b| a.block == b.block).collect();
    let pattern = |group: &[Line]| group.iter().map(Line::pattern).collect::<Vec<_>>();
    let same_stack = |a: &[Line], b: &[Line]| match (&a[0].block, &b[0].block) {
        (Some((a, _)), Some((b, _))) => a == b,
        _ => false,
    };
    let mut i = 0;
    while i < groups.len() {
        groups[i].iter().try_for_each(|line| writeln!(f, "{}", line.text))?;
        let alike = groups[i + 1..].iter().take_while(|g| same_stack(groups[i], g) && pattern(g) == pattern(groups[i])).count();
        if alike > 0 {
            let (stack, number) = groups[i][0].block.clone().unwrap_or_default();
            writeln!(f, "  {stack}.{} to {}: as {stack}.{number}", number + 1, number + alike)?;
        }
        i += 1 + alike;
    }
    Ok(())
}
