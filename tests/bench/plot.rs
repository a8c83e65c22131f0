//! Plots of a few lines over a logarithmic axis, side by side in one SVG file.

use std::fmt::Write as _;

/// One plot.
pub(crate) struct Plot {
    /// What it shows.
    pub(crate) title: String,
    /// What the horizontal axis counts.
    pub(crate) across: &'static str,
    /// The unit of the vertical axis.
    pub(crate) unit: &'static str,
    /// Whether the vertical axis is logarithmic too; otherwise it begins at zero.
    pub(crate) logarithmic: bool,
    /// Lines with their names; points from left to right.
    pub(crate) lines: Vec<(String, Vec<(f64, f64)>)>,
}

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = WIDTH - 20.0;
/// Below the axis stand the names of the lines.
const BOTTOM: f64 = 260.0;
const COLOURS: [&str; 6] = ["#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#555555"];

/// The file.
pub(crate) fn svg(plots: &[Plot]) -> String {
    let width = WIDTH * plots.len() as f64;
    let panels: String = plots
        .iter()
        .enumerate()
        .map(|(at, plot)| plot.panel(WIDTH * at as f64))
        .collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{panels}</svg>\n"
    )
}

impl Plot {
    fn panel(&self, offset: f64) -> String {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let most = points().fold(0.0, |most, (_, y)| y.max(most));
        let least = points().fold(most, |least, (_, y)| y.min(least));
        let vertical = if self.logarithmic {
            Axis::decades(least, most)
        } else {
            Axis::from_zero(most)
        };
        let most = points().fold(0.0, |most, (x, _)| x.max(most));
        let least = points().fold(most, |least, (x, _)| x.min(least));
        let horizontal = Axis::decades(least, most);
        let mut text = format!(
            "<g transform=\"translate({offset} 0)\">\n<text x=\"{LEFT}\" y=\"20\" font-weight=\"bold\">{}</text>\n\
             <text x=\"{RIGHT}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\n<text x=\"{LEFT}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\n",
            self.title,
            BOTTOM + 32.0,
            self.across,
            TOP - 6.0,
            self.unit
        );
        for (at, label) in vertical.ticks() {
            let y = BOTTOM - at * (BOTTOM - TOP);
            // Writing to a String cannot fail.
            let _written = writeln!(
                text,
                "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#dddddd\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 6.0,
                y + 4.0
            );
        }
        for (at, label) in horizontal.ticks() {
            let x = LEFT + at * (RIGHT - LEFT);
            let _written = writeln!(
                text,
                "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#eeeeee\"/><text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{label}</text>",
                BOTTOM + 16.0
            );
        }
        for (number, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let place = |(x, y): &(f64, f64)| {
                (
                    LEFT + horizontal.at(*x) * (RIGHT - LEFT),
                    BOTTOM - vertical.at(*y) * (BOTTOM - TOP),
                )
            };
            let path: Vec<String> = points
                .iter()
                .map(place)
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            let _written = writeln!(
                text,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
            for (x, y) in points.iter().map(place) {
                let _written = writeln!(text, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
            }
            let y = BOTTOM + 52.0 + 17.0 * number as f64;
            let _written = writeln!(
                text,
                "<path d=\"M{LEFT} {:.0}h20\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{:.0}\" y=\"{y:.0}\">{name}</text>",
                y - 4.0,
                LEFT + 26.0
            );
        }
        text + "</g>\n"
    }
}

/// Where numbers lie between its ends.
struct Axis {
    logarithmic: bool,
    least: f64,
    most: f64,
}

impl Axis {
    /// Whole powers of ten around these numbers.
    fn decades(least: f64, most: f64) -> Self {
        let least = least.max(1e-6).log10().floor();
        Self {
            logarithmic: true,
            least,
            most: most.max(1e-6).log10().ceil().max(least + 1.0),
        }
    }

    /// From zero to a round number above.
    fn from_zero(most: f64) -> Self {
        let step = Self::step(most);
        Self {
            logarithmic: false,
            least: 0.0,
            most: step * (most / step).ceil().max(1.0),
        }
    }

    /// A distance of lines that makes four to ten of them.
    fn step(most: f64) -> f64 {
        let power = 10_f64.powf(most.max(1e-6).log10().floor());
        let steps = [0.1, 0.2, 0.5, 1.0].map(|part| part * power);
        steps.into_iter().find(|step| most / step <= 8.0).unwrap_or(power)
    }

    /// From 0 to 1.
    fn at(&self, number: f64) -> f64 {
        let number = if self.logarithmic {
            number.max(1e-6).log10()
        } else {
            number
        };
        (number - self.least) / (self.most - self.least)
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        let step = if self.logarithmic { 1.0 } else { Self::step(self.most) };
        let numbers = (0..=20_u8).map(|number| self.least + step * f64::from(number));
        let numbers = numbers.take_while(|number| *number <= self.most + step / 2.0);
        let label = |number: f64| if self.logarithmic { 10_f64.powf(number) } else { number };
        numbers
            .map(|number| {
                let place = (number - self.least) / (self.most - self.least);
                let shown = (label(number) * 1e6).round() / 1e6;
                (place, shown.to_string())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers_around_what_they_show() {
        let labels = |axis: &Axis| axis.ticks().into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(labels(&Axis::decades(1.0, 1_048_576.0)).last().unwrap(), "10000000");
        assert_eq!(labels(&Axis::decades(0.2, 7.0)), ["0.1", "1", "10"]);
        assert_eq!(
            labels(&Axis::from_zero(130.0)),
            ["0", "20", "40", "60", "80", "100", "120", "140"]
        );
        assert!((Axis::decades(1.0, 100.0).at(10.0) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_file_has_every_line_with_its_name() {
        let plot = |title: &str| Plot {
            title: title.to_owned(),
            across: "flows",
            unit: "ns",
            logarithmic: false,
            lines: vec![("one".to_owned(), vec![(1.0, 10.0), (1000.0, 20.0)])],
        };
        let text = svg(&[plot("left"), plot("right")]);
        assert_eq!(text.matches("<polyline").count(), 2);
        assert!(text.contains(">one<") && text.contains(">right<"), "{text}");
    }
}
