//! What a client sent, as a log line may quote it.

/// Longest quotation, in characters.
const QUOTED: usize = 100;

/// Without control characters, and cut.
pub(super) fn quoted(text: &str) -> String {
    let mut cut: String =
        text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(QUOTED).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_short_and_cannot_steer_a_terminal() {
        assert_eq!(quoted("boot/x\u{1b}[2J"), "boot/x\u{fffd}[2J");
        let long = quoted(&"x".repeat(5000));
        assert_eq!(long.chars().count(), QUOTED + 1);
    }
}
