//! Figures of many rounds, and how they are shown: medians with their quartiles, and ratios taken round by round.
//!
//! A machine that others use is noisy for seconds at a time, so sides are compared within a round and never across rounds.

use serde_json::{Value, json};

/// One figure a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    /// Adds a round's figure.
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// Round by round, this over that; both have as many rounds.
    pub(crate) fn over(&self, other: &Self) -> Self {
        assert_eq!(
            self.0.len(),
            other.0.len(),
            "sides of one comparison have the same rounds"
        );
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// Round by round, this less that, and plus the third.
    pub(crate) fn less(&self, taken: &Self, given: &Self) -> Self {
        let each = self.0.iter().zip(&taken.0).zip(&given.0);
        Self(each.map(|((a, b), c)| a - b + c).collect())
    }

    /// The value below which so many quarters of the rounds lie, between neighbours in proportion.
    fn quartile(&self, quarters: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = quarters * (sorted.len() - 1);
        let (below, above) = (sorted[at / 4], sorted[at.div_ceil(4)]);
        below + (above - below) * (at % 4) as f64 / 4.0
    }

    /// The median.
    pub(crate) fn median(&self) -> f64 {
        self.quartile(2)
    }

    /// The distance between the quartiles over the median.
    pub(crate) fn spread(&self) -> f64 {
        (self.quartile(3) - self.quartile(1)) / self.median()
    }

    /// For the JSON file.
    pub(crate) fn json(&self) -> Value {
        json!({ "median": self.median(), "spread": self.spread(), "rounds": self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_quartiles_are_those_of_the_rounds() {
        let figures = Figures(vec![4.0, 1.0, 3.0, 2.0, 5.0]);
        assert!((figures.median() - 3.0).abs() < 1e-9);
        assert!((figures.spread() - 2.0 / 3.0).abs() < 1e-9);
        assert!((Figures(vec![1.0, 2.0]).median() - 1.5).abs() < 1e-9);
    }

    #[test]
    fn sides_are_compared_round_by_round() {
        let (ours, theirs) = (Figures(vec![10.0, 30.0]), Figures(vec![5.0, 10.0]));
        assert_eq!(ours.over(&theirs).0, [2.0, 3.0]);
        assert_eq!(ours.less(&theirs, &Figures(vec![1.0, 1.0])).0, [6.0, 21.0]);
    }
}
