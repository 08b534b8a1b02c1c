//! Comparisons in pairs: every round measures both sides of every line, one right after the other, and which of them is first changes.
//!
//! A machine that gets slower or busier does so for both sides of a pair, so a ratio is taken inside of one. The interval of the ratios'
//! median stands on their order alone ([`interval`]), whatever else the machine was doing.

use std::fmt::Write as _;

use crate::{interval, spread};

/// One thing that is measured on both sides.
pub struct Line<'a> {
    /// What it is called.
    pub what: String,
    /// The names of its figures, with their units.
    pub figures: [&'static str; 2],
    /// Measures a side (0 or 1) in a round: its figures.
    pub measure: Box<dyn Fn(usize, usize) -> [f64; 2] + 'a>,
}

/// Measures all lines in so many rounds and makes a table of them: the figures of both sides, and of each pair the second by the first.
#[must_use]
pub fn table(rounds: usize, sides: [&str; 2], lines: &[Line<'_>]) -> String {
    let mut all: Vec<Vec<[[f64; 2]; 2]>> = vec![Vec::new(); lines.len()];
    for round in 0..rounds {
        for (line, pairs) in lines.iter().zip(&mut all) {
            let mut pair = [[0.0; 2]; 2];
            let first = round % 2;
            for side in [first, 1 - first] {
                pair[side] = (line.measure)(side, round);
            }
            pairs.push(pair);
        }
    }
    let [a, b] = sides;
    let mut text =
        format!("| | figure | {a} | {b} | {b} / {a} | 95 % of its median |\n|---|---|---|---|---|---|\n");
    for (line, pairs) in lines.iter().zip(&all) {
        for (n, figure) in line.figures.iter().enumerate() {
            let of = |side: usize| pairs.iter().map(move |pair| pair[side][n]);
            let ratios: Vec<f64> = of(1).zip(of(0)).map(|(b, a)| b / a).collect();
            let (a, b) = (spread(of(0)), spread(of(1)));
            let (ratio, interval) = (spread(ratios.iter().copied()), interval(ratios));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {} | {figure} | {a} | {b} | {ratio} | {interval} |", line.what);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn sides_take_turns_and_a_ratio_is_taken_inside_of_a_round() {
        let calls = RefCell::new(Vec::new());
        let line = Line {
            what: "reads".to_owned(),
            figures: ["CPU", "rate"],
            measure: Box::new(|side, round| {
                calls.borrow_mut().push((side, round));
                // The machine gets slower from round to round, and the second side costs half.
                let cost = (round + 1) as f64;
                if side == 0 { [cost * 2.0, 10.0] } else { [cost, 30.0] }
            }),
        };
        let text = table(6, ["other", "this"], &[line]);
        assert_eq!(calls.borrow()[..4], [(0, 0), (1, 0), (1, 1), (0, 1)]);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| reads | CPU | 8.00 (2.00 to 12.0) | 4.00 (1.00 to 6.00) | 0.50 (0.50 to 0.50) | 0.50 to 0.50 |",
                "| reads | rate | 10.0 (10.0 to 10.0) | 30.0 (30.0 to 30.0) | 3.00 (3.00 to 3.00) | 3.00 to 3.00 |",
            ]
        );
    }
}
