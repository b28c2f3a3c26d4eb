//! `block`: lines between two marks, `# BEGIN rekindle: NAME` and `# END rekindle: NAME`, with nothing else between them. A
//! missing block is added at the end; one without lines is removed, marks and all.

use super::{EditError, Edited};
use crate::resource::Change;
use crate::resource::lines::Lines;
use crate::resource::text::content_change;

/// Makes the block of this name hold exactly these lines. `comment` is what a comment of the file begins with.
///
/// # Errors
///
/// When the block's beginning has no end: what belongs to it cannot be told.
pub fn edit(content: &[u8], name: &str, comment: &str, wanted: &[String]) -> Result<Edited, EditError> {
    let (begin, end) = (begin_mark(comment, name), end_mark(comment, name));
    let mut lines = Lines::of(content);
    let mut blocks = Vec::new();
    let mut open = None;
    for (at, body) in lines.bodies() {
        if body == begin.as_bytes() {
            if let Some(line) = open.replace(at) {
                return Err(EditError::Unended { begin, end, line: line + 1 });
            }
        } else if body == end.as_bytes()
            && let Some(begin) = open.take()
        {
            blocks.push(begin..at + 1);
        }
    }
    if let Some(line) = open {
        return Err(EditError::Unended { begin, end, line: line + 1 });
    }
    let inner = |lines: &Lines<'_>, block: &std::ops::Range<usize>| -> Vec<Vec<u8>> {
        (block.start + 1..block.end - 1).map(|at| lines.body(at).to_vec()).collect()
    };
    let attribute = format!("block {name}");
    let mut changes = Vec::new();
    // All but the first are copies that somebody made.
    let first = blocks.first().cloned();
    for block in blocks.iter().skip(1).rev() {
        changes.push(change(&attribute, Some(&inner(&lines, block)), None));
        block.clone().rev().for_each(|at| lines.remove(at));
    }
    let wanted: Vec<Vec<u8>> = wanted.iter().map(|line| line.clone().into_bytes()).collect();
    match first {
        Some(block) if wanted.is_empty() => {
            changes.push(change(&attribute, Some(&inner(&lines, &block)), None));
            block.rev().for_each(|at| lines.remove(at));
        }
        Some(block) => {
            let found = inner(&lines, &block);
            if found != wanted {
                changes.push(change(&attribute, Some(&found), Some(&wanted)));
                (block.start + 1..block.end - 1).rev().for_each(|at| lines.remove(at));
                wanted.into_iter().rev().for_each(|line| lines.insert(block.start + 1, line));
            }
        }
        None if wanted.is_empty() => {}
        None => {
            changes.push(change(&attribute, None, Some(&wanted)));
            for line in std::iter::once(begin.into_bytes()).chain(wanted).chain([end.into_bytes()]) {
                lines.insert(lines.len(), line);
            }
        }
    }
    Ok(Edited { content: lines.to_bytes(), changes })
}

/// The line that a block begins with.
pub fn begin_mark(comment: &str, name: &str) -> String {
    format!("{comment} BEGIN rekindle: {name}")
}

/// The line that a block ends with.
pub fn end_mark(comment: &str, name: &str) -> String {
    format!("{comment} END rekindle: {name}")
}

fn change(attribute: &str, from: Option<&[Vec<u8>]>, to: Option<&[Vec<u8>]>) -> Change {
    let text = |lines: &[Vec<u8>]| {
        let mut text = lines.join(&b'\n');
        text.push(b'\n');
        text
    };
    content_change(attribute, from.map(text).as_deref(), to.map(text).as_deref())
}
