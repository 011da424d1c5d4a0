//! Line charts with logarithmic axes, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 84.0;
/// Colours that colour-blind readers can distinguish, too (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// The text of the legend.
    pub name: String,
    /// Its points; those that are not positive can't be drawn, and are left out.
    pub points: Vec<(f64, f64)>,
}

/// One picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// The title.
    pub title: String,
    /// The label of the horizontal axis.
    pub x: String,
    /// The label of the vertical axis.
    pub y: String,
    /// The lines, at most four.
    pub series: Vec<Series>,
}

/// A logarithmic axis over whole decades.
struct Axis {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let (least, most) =
            values.fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(value), most.max(value)));
        let (from, to) = if least > most { (0.0, 1.0) } else { (least.log10().floor(), most.log10().ceil()) };
        Self { from, to: to.max(from + 1.0), start, end }
    }

    fn at(&self, value: f64) -> f64 {
        self.start + (value.log10() - self.from) / (self.to - self.from) * (self.end - self.start)
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.from as i32..=self.to as i32).map(|power| 10f64.powi(power))
    }
}

impl Plot {
    /// The picture.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(drawable);
        let x = Axis::over(points().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let y = Axis::over(points().map(|point| point.1), HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        text(&mut svg, WIDTH / 2.0, 22.0, "middle", &self.title);
        for value in x.decades() {
            line(&mut svg, (x.at(value), TOP), (x.at(value), HEIGHT - BOTTOM));
            text(&mut svg, x.at(value), HEIGHT - BOTTOM + 16.0, "middle", &number(value));
        }
        for value in y.decades() {
            line(&mut svg, (LEFT, y.at(value)), (WIDTH - RIGHT, y.at(value)));
            text(&mut svg, LEFT - 6.0, y.at(value) + 4.0, "end", &number(value));
        }
        text(&mut svg, WIDTH / 2.0, HEIGHT - BOTTOM + 34.0, "middle", &self.x);
        text(&mut svg, LEFT, TOP - 8.0, "end", &self.y);
        for ((nth, series), colour) in self.series.iter().enumerate().zip(COLOURS.iter().cycle()) {
            self.draw(&mut svg, series, colour, (&x, &y));
            let (left, top) = (LEFT + 280.0 * (nth % 2) as f64, HEIGHT - 30.0 + 18.0 * (nth / 2) as f64);
            // Writing to a String can't fail.
            let _ =
                writeln!(svg, "<rect x=\"{left}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>", top - 10.0);
            text(&mut svg, left + 18.0, top, "start", &series.name);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn draw(&self, svg: &mut String, series: &Series, colour: &str, (x, y): (&Axis, &Axis)) {
        let points: Vec<String> =
            drawable(series).map(|point| format!("{:.1},{:.1}", x.at(point.0), y.at(point.1))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for point in drawable(series) {
            let (left, top) = (x.at(point.0), y.at(point.1));
            let _ = writeln!(svg, "<circle cx=\"{left:.1}\" cy=\"{top:.1}\" r=\"3\" fill=\"{colour}\"/>");
            text(svg, left, top - 6.0, "middle", &short(point.1));
        }
    }
}

fn drawable(series: &Series) -> impl Iterator<Item = (f64, f64)> {
    series.points.iter().copied().filter(|point| point.0 > 0.0 && point.1 > 0.0)
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#dddddd\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>");
}

/// A decade.
fn number(value: f64) -> String {
    if value >= 1.0 { format!("{value:.0}") } else { format!("{value}") }
}

/// Three digits are enough beside a point.
fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_drawn_within_the_frame() {
        let series = Series { name: "a < b".to_owned(), points: vec![(1.0, 0.02), (1000.0, 3.0), (100_000.0, 0.0)] };
        let plot = Plot { title: "T".to_owned(), x: "n".to_owned(), y: "ms".to_owned(), series: vec![series] };
        let svg = plot.svg();
        assert_eq!(svg.matches("<circle").count(), 2, "a value of zero has no logarithm");
        assert!(svg.contains("a &lt; b"));
        let axis = Axis::over([0.02, 3.0].into_iter(), 0.0, 100.0);
        assert!((axis.at(0.01) - 0.0).abs() < 1e-9 && (axis.at(10.0) - 100.0).abs() < 1e-9);
    }
}
