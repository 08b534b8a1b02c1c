//! A script cut into lines and words exactly as iPXE cuts it.
//!
//! Settings are not expanded here: iPXE looks for `#`, `||`, `&&` and `;` before it expands, so the value of a setting can never become
//! syntax.

/// When the next command of the same line is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is none.
    End,
    /// `&&`: when this one succeeded.
    OnSuccess,
    /// `||`: when this one failed.
    OnFailure,
    /// `;`: in any case.
    Always,
}

/// One command of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its words, the name first; none for the empty command, which succeeds.
    pub words: Vec<String>,
    /// What follows it.
    pub next: Next,
}

/// A line that holds a label, a command or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number in the text, from 1; of a continued line the first one's.
    pub number: usize,
    /// Its label, without the colon.
    pub label: Option<String>,
    /// Its commands; empty for a line with a label alone.
    pub commands: Vec<Command>,
}

/// White space as C's `isspace` has it.
pub(super) const fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}')
}

/// Reads a script; lines without a label and a command are left out, the first line (`#!ipxe`) among them.
#[must_use]
pub fn read(script: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut joined = String::new();
    let mut first = 1;
    let mut physical = script.split('\n').enumerate().peekable();
    while let Some((i, raw)) = physical.next() {
        if joined.is_empty() {
            first = i + 1;
        }
        joined.push_str(raw);
        if joined.ends_with('\r') {
            joined.pop();
        }
        if joined.ends_with('\\') && physical.peek().is_some() {
            joined.pop();
            continue;
        }
        if let Some(line) = read_line(first, &joined) {
            lines.push(line);
        }
        joined.clear();
    }
    lines
}

fn read_line(number: usize, text: &str) -> Option<Line> {
    let text = text.trim_start_matches(is_space);
    let (label, rest) = match text.strip_prefix(':') {
        Some(after) => {
            let end = after.find(is_space).unwrap_or(after.len());
            (Some(after[..end].to_owned()), &after[end..])
        }
        None => (None, text),
    };
    let commands = read_commands(rest);
    (label.is_some() || !commands.is_empty()).then_some(Line { number, label, commands })
}

fn read_commands(text: &str) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut words = Vec::new();
    for word in text.split(is_space).filter(|w| !w.is_empty()) {
        let next = match word {
            w if w.starts_with('#') => break,
            "||" => Next::OnFailure,
            "&&" => Next::OnSuccess,
            ";" => Next::Always,
            w => {
                words.push(w.to_owned());
                continue;
            }
        };
        commands.push(Command { words: std::mem::take(&mut words), next });
    }
    // A line that ends with an operator ends with an empty command, which is how a script ignores a failure.
    if !words.is_empty() || !commands.is_empty() {
        commands.push(Command { words, next: Next::End });
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &Line) -> Vec<Vec<&str>> {
        line.commands.iter().map(|c| c.words.iter().map(String::as_str).collect()).collect()
    }

    #[test]
    fn labels_continuations_comments_and_operators() {
        let script = "#!ipxe\r\n\n  :again echo hi # not this\ndhcp || goto \\\nagain\n:end\necho a||b ; exit 1 ||\n# all\n";
        let lines = read(script);
        assert_eq!(lines.iter().map(|l| l.number).collect::<Vec<_>>(), [3, 4, 6, 7]);
        assert_eq!(lines[0].label.as_deref(), Some("again"));
        assert_eq!(words(&lines[0]), [["echo", "hi"]]);
        assert_eq!(words(&lines[1]), [vec!["dhcp"], vec!["goto", "again"]]);
        assert_eq!(lines[1].commands[0].next, Next::OnFailure);
        assert_eq!((lines[2].label.as_deref(), lines[2].commands.len()), (Some("end"), 0));
        assert_eq!(words(&lines[3]), [vec!["echo", "a||b"], vec!["exit", "1"], vec![]]);
    }
}
