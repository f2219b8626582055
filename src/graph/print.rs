//! The graph as text: one line a node, equal blocks of a stack shown once.

use std::fmt;

use super::{Graph, Node, TensorId};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for body in &self.bodies {
            writeln!(f, "stage {}: {} nodes", body.name, body.nodes.len())?;
            let lines: Vec<Line> = self.nodes[body.nodes.clone()].iter().map(|n| self.line(n)).collect();
            write_folded(f, &lines)?;
        }
        Ok(())
    }
}

/// A node's line, with the block of a stack that it belongs to: `double_blocks` and 3 for `double_blocks.3.img_attn.qkv`.
struct Line {
    block: Option<(String, usize)>,
    text: String,
    /// The text without what differs between equal blocks: their number, and where parts of shared storages begin.
    pattern: String,
}

impl Graph {
    fn line(&self, node: &Node) -> Line {
        let block = block_of(&node.name);
        let prefix = block.as_ref().map_or(String::new(), |(stack, i)| format!("{stack}.{i}."));
        let attributes = node.op.attributes();
        let op = if attributes.is_empty() { node.op.kind().to_string() } else { format!("{}({attributes})", node.op.kind()) };
        let line = |offsets: bool| {
            let list =
                |ids: &[TensorId]| ids.iter().map(|&id| self.describe(id, &prefix, offsets)).collect::<Vec<_>>().join(", ");
            format!(
                "{}: {op} {} -> {}",
                node.name.strip_prefix(&prefix).unwrap_or(&node.name),
                list(&node.inputs),
                list(&node.outputs)
            )
        };
        Line { text: format!("  {prefix}{}", line(true)), pattern: line(false), block }
    }

    /// Storage name (from the dot on within the block `prefix`), type, extents and, of a part, where it begins.
    fn describe(&self, id: TensorId, prefix: &str, offsets: bool) -> String {
        let (tensor, storage) = (self.tensor(id), self.storage_of(id));
        let whole = tensor.spec.shape.elements() == storage.spec.shape.elements();
        let stride = storage.spec.shape.cols();
        let part = match (whole, offsets) {
            (true, _) => String::new(),
            (false, true) => format!("@{},{}", tensor.offset / stride, tensor.offset % stride),
            (false, false) => "@".to_string(),
        };
        let name = match storage.name.strip_prefix(prefix) {
            Some(rest) if !prefix.is_empty() => format!(".{rest}"),
            _ => storage.name.clone(),
        };
        format!("{name}{part} {}", tensor.spec)
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
    let same_stack = |a: &[Line], b: &[Line]| match (&a[0].block, &b[0].block) {
        (Some((a, _)), Some((b, _))) => a == b,
        _ => false,
    };
    let mut i = 0;
    while i < groups.len() {
        groups[i].iter().try_for_each(|line| writeln!(f, "{}", line.text))?;
        let alike = groups[i + 1..]
            .iter()
            .take_while(|g| same_stack(groups[i], g) && g.iter().map(|l| &l.pattern).eq(groups[i].iter().map(|l| &l.pattern)))
            .count();
        if alike > 0 {
            let (stack, number) = groups[i][0].block.clone().unwrap_or_default();
            writeln!(f, "  {stack}.{} to {}: as {stack}.{number}", number + 1, number + alike)?;
        }
        i += 1 + alike;
    }
    Ok(())
}
