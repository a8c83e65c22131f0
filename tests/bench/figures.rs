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

    /// The distance between the quartiles over the median; none where all rounds are alike, also at nought.
    pub(crate) fn spread(&self) -> f64 {
        let distance = self.quartile(3) - self.quartile(1);
        if distance > 0.0 { distance / self.median() } else { 0.0 }
    }

    /// The 95 % interval of the mean, by Student's distribution over the logarithms: for ratios, whose inverse has the inverse
    /// interval. One round knows nothing of it.
    pub(crate) fn interval(&self) -> (f64, f64) {
        let logarithms: Vec<f64> = self.0.iter().map(|figure| figure.ln()).collect();
        let count = logarithms.len() as f64;
        let mean = logarithms.iter().sum::<f64>() / count;
        let squares: f64 = logarithms.iter().map(|one| (one - mean).powi(2)).sum();
        let Some(factor) = self.0.len().checked_sub(2).map(student) else {
            return (0.0, f64::INFINITY);
        };
        let half = factor * (squares / (count - 1.0) / count).sqrt();
        ((mean - half).exp(), (mean + half).exp())
    }

    /// For the JSON file.
    pub(crate) fn json(&self) -> Value {
        json!({ "median": self.median(), "spread": self.spread(), "rounds": self.0 })
    }
}

/// The factor of a two-sided 95 % interval at one more degree of freedom than `index`; beyond the table, an approximation that is
/// right to the second digit.
fn student(index: usize) -> f64 {
    const FACTORS: [f64; 10] = [12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    FACTORS
        .get(index)
        .copied()
        .unwrap_or_else(|| 1.96 + 2.6 / (index as f64 + 1.0))
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
        assert!(Figures(vec![0.0]).spread().abs() < 1e-9);
    }

    #[test]
    fn an_interval_narrows_with_the_rounds_and_has_the_mean_inside() {
        let (low, high) = Figures(vec![0.9, 1.1]).interval();
        assert!(low < 0.4 && high > 2.5, "{low} {high}");
        let (low, high) = Figures([0.9, 1.1].repeat(8)).interval();
        assert!(low > 0.93 && low < 0.95 && high > 1.04 && high < 1.06, "{low} {high}");
        assert!(Figures(vec![1.0]).interval().1.is_infinite());
    }

    #[test]
    fn sides_are_compared_round_by_round() {
        let (ours, theirs) = (Figures(vec![10.0, 30.0]), Figures(vec![5.0, 10.0]));
        assert_eq!(ours.over(&theirs).0, [2.0, 3.0]);
        assert_eq!(ours.less(&theirs, &Figures(vec![1.0, 1.0])).0, [6.0, 21.0]);
    }
}
