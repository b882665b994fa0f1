//! The user's file of prices.

use super::Tokens;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use taper_diagnostics::{Location, Problem, Problems, TextSource, with_cause};
use time::{Date, Month};

/// Prices that are older may well have changed.
pub const MAX_PRICE_AGE_DAYS: i64 = 90;
/// Most bytes of a price file.
const MAX_BYTES: u64 = 1 << 20;
/// A price above this for a million tokens is a slip.
const MAX_PRICE: f64 = 1e9;

/// Prices of models, and the day they were true.
#[derive(Debug, Clone, PartialEq)]
pub struct PriceFile {
    /// The day.
    pub date: Date,
    /// The prices by the models' names.
    pub models: BTreeMap<String, Price>,
}

/// Money per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of the prompt.
    pub input: f64,
    /// Of the answer.
    pub output: f64,
    /// Of the prompt, where it was read from a cache; left out, as `input`.
    pub input_cache_read: Option<f64>,
    /// Of the prompt, where it was written to a cache; left out, as `input`.
    pub input_cache_write: Option<f64>,
}

impl Price {
    /// The price of so many tokens.
    pub fn of(&self, tokens: Tokens) -> f64 {
        let read = tokens.cached_input.min(tokens.input);
        let write = tokens.cache_write.min(tokens.input - read);
        let plain = tokens.input - read - write;
        (plain as f64 * self.input
            + read as f64 * self.input_cache_read.unwrap_or(self.input)
            + write as f64 * self.input_cache_write.unwrap_or(self.input)
            + tokens.output as f64 * self.output)
            / 1e6
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    date: toml::Value,
    currency: Option<String>,
    #[serde(default)]
    models: BTreeMap<String, Price>,
}

impl PriceFile {
    /// Read a price file in TOML; beside it the warnings that there are, as of a file that is older than [`MAX_PRICE_AGE_DAYS`] days on the day
    /// `today`. A `currency` in it must be that of the section.
    ///
    /// # Errors
    /// Every fault of the file.
    pub fn load(path: &Path, currency: &str, today: Date) -> Result<(Self, Problems), Problems> {
        let whole = |message: String| {
            let mut problems = Problems::new();
            problems.push(Problem::error("price-file", message).at(Location::file(path)));
            problems
        };
        let bytes = TextSource::file(path).read(MAX_BYTES);
        let bytes = bytes.map_err(|error| whole(with_cause("cannot read the prices".into(), &error)))?;
        let text = String::from_utf8(bytes).map_err(|_| whole("the prices are no UTF-8 text".into()))?;
        Self::read(&text, path, currency, today)
    }

    fn read(text: &str, path: &Path, currency: &str, today: Date) -> Result<(Self, Problems), Problems> {
        let mut problems = Problems::new();
        let file: File = match toml::from_str(text) {
            Ok(file) => file,
            Err(error) => {
                let at = match error.span().and_then(|span| text.get(..span.start)) {
                    Some(before) => Location::line(path, before.matches('\n').count() + 1),
                    None => Location::file(path),
                };
                problems.push(Problem::error("price-file", error.message().trim()).at(at));
                return Err(problems);
            }
        };
        let mut add =
            |problem: Problem, key: &str| problems.push(problem.at(Location::file(path).with_key(key)));
        if let Some(other) = file.currency.filter(|other| other != currency) {
            let message = format!("the prices are in `{other}`, `cost.currency` is `{currency}`");
            add(Problem::error("price-currency", message), "currency");
        }
        for (name, price) in &file.models {
            let optional = [
                ("input_cache_read", price.input_cache_read),
                ("input_cache_write", price.input_cache_write),
            ];
            let all =
                [("input", Some(price.input)), ("output", Some(price.output))].into_iter().chain(optional);
            for (key, value) in all.filter_map(|(key, value)| Some((key, value?))) {
                if !(0.0..=MAX_PRICE).contains(&value) {
                    let message = format!("`{key}` of `{name}` is {value}, allowed is 0 to {MAX_PRICE}");
                    add(Problem::error("out-of-range", message), &format!("models.{name}.{key}"));
                }
            }
        }
        let date = date_of(&file.date);
        match date.map(|date| (today - date).whole_days()) {
            None => {
                let message = "`date` is no day such as \"2026-05-01\"";
                add(Problem::error("price-date", message), "date");
            }
            Some(days) if days > MAX_PRICE_AGE_DAYS => {
                let message = format!("the prices are {days} days old");
                add(
                    Problem::warning("old-prices", message).hint("look them up again and set `date`"),
                    "date",
                );
            }
            Some(days) if days < -1 => {
                let message = format!("the prices are of a day that is {} days ahead", -days);
                add(Problem::warning("future-prices", message), "date");
            }
            Some(_) => {}
        }
        let warnings = problems.into_result()?;
        match date {
            Some(date) => Ok((Self { date, models: file.models }, warnings)),
            None => Err(warnings),
        }
    }
}

/// A day, as a text or as TOML's own date.
fn date_of(value: &toml::Value) -> Option<Date> {
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Datetime(date) => date.to_string(),
        _ => return None,
    };
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || (year.len(), month.len(), day.len()) != (4, 2, 2) {
        return None;
    }
    let month = Month::try_from(month.parse::<u8>().ok()?).ok()?;
    Date::from_calendar_date(year.parse().ok()?, month, day.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "date = \"2026-05-01\"\n[models.\"org/gpt-mini\"]\ninput = 0.15\noutput = 0.60\ninput_cache_read = 0.075\n";

    fn day(text: &str) -> Date {
        date_of(&toml::Value::String(text.into())).unwrap()
    }

    fn read(text: &str, today: &str) -> Result<(PriceFile, Problems), Problems> {
        PriceFile::read(text, Path::new("prices.toml"), "USD", day(today))
    }

    fn codes(problems: &Problems) -> Vec<&str> {
        problems.iter().map(|problem| problem.code).collect()
    }

    #[test]
    fn prices_are_read_and_grow_old() {
        let (file, warnings) = read(FILE, "2026-07-30").unwrap();
        assert!(warnings.is_empty(), "{warnings}");
        assert_eq!((file.date, file.models.len()), (day("2026-05-01"), 1));
        let (_, warnings) = read(FILE, "2026-07-31").unwrap();
        assert_eq!(codes(&warnings), ["old-prices"]);
        assert!(warnings.to_string().contains("91 days old"));
        assert_eq!(codes(&read(FILE, "2026-04-01").unwrap().1), ["future-prices"]);
        let native = FILE.replace("\"2026-05-01\"", "2026-05-01");
        assert_eq!(read(&native, "2026-05-02").unwrap().0, file);
    }

    #[test]
    fn tokens_are_paid_by_their_kind() {
        let price =
            Price { input: 2.0, output: 10.0, input_cache_read: Some(0.5), input_cache_write: Some(2.5) };
        let tokens = Tokens { input: 1_000_000, cached_input: 400_000, cache_write: 200_000, output: 50_000 };
        // 0.4 * 2 + 0.4 * 0.5 + 0.2 * 2.5 + 0.05 * 10
        assert!((price.of(tokens) - 2.0).abs() < 1e-12);
        let plain = Price { input_cache_read: None, input_cache_write: None, ..price };
        assert!((plain.of(tokens) - 2.5).abs() < 1e-12);
        // A server that counts more cached tokens than there are does not make the price negative.
        let odd = Tokens { input: 10, cached_input: u64::MAX, cache_write: u64::MAX, output: 0 };
        assert!((price.of(odd) - 10.0 * 0.5 / 1e6).abs() < 1e-15);
    }

    #[test]
    fn files_with_faults_are_refused() {
        let model = |lines: &str| format!("date = '2026-05-01'\n[models.m]\n{lines}");
        for (text, code) in [
            (model("input = 1.0"), "price-file"),
            (model("input = 1.0\noutput = 1.0\ncached = 1.0"), "price-file"),
            (model("input = 'x'\noutput = 1.0"), "price-file"),
            (model("input = -1.0\noutput = 1.0"), "out-of-range"),
            (model("input = 1.0\noutput = nan"), "out-of-range"),
            (model("input = inf\noutput = 1.0"), "out-of-range"),
            (model("input = 1.0\noutput = 1.0\ninput_cache_write = -0.1"), "out-of-range"),
            ("[models]".into(), "price-file"),
            ("date = '2026-02-30'".into(), "price-date"),
            ("date = '2026-5-1'".into(), "price-date"),
            ("date = 20260501".into(), "price-date"),
            ("date = 2026-05-01T10:00:00".into(), "price-date"),
            ("date = '2026-05-01'\ncurrency = 'EUR'".into(), "price-currency"),
            ("date = ".into(), "price-file"),
        ] {
            let problems = read(&text, "2026-05-02").unwrap_err();
            assert_eq!(codes(&problems), [code], "{text}: {problems}");
        }
        let problems = read(&model("input = 1.0\noutput = 'x'"), "2026-05-02").unwrap_err();
        assert_eq!(problems.iter().next().unwrap().location.as_ref().unwrap().line, Some(4));
    }

    #[test]
    fn a_file_is_read_from_the_disk_up_to_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prices.toml");
        let today = day("2026-05-02");
        let problems = PriceFile::load(&path, "USD", today).unwrap_err();
        assert!(problems.to_string().contains("prices.toml"), "{problems}");
        fs_err::write(&path, FILE).unwrap();
        assert!(PriceFile::load(&path, "USD", today).is_ok());
        fs_err::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
        assert!(PriceFile::load(&path, "USD", today).unwrap_err().to_string().contains("limit"));
        fs_err::write(&path, [0xff]).unwrap();
        assert!(PriceFile::load(&path, "USD", today).unwrap_err().to_string().contains("UTF-8"));
    }
}
