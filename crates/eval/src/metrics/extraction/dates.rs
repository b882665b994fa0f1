//! Dates in the ways people write them, made comparable.

/// A date, perhaps with a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Days since 1970-01-01 in the proleptic Gregorian calendar.
    days: i64,
    /// Nanoseconds since midnight, and the offset from UTC in seconds where one is written.
    time: Option<(i64, Option<i64>)>,
}

const DAY_NS: i64 = 86_400 * 1_000_000_000;
const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

impl Moment {
    /// Whether both are the same: the day, if one has no time of day; the instant, if both have an offset; else date and clock.
    pub(crate) fn is_same_as(self, other: Self) -> bool {
        match (self.time, other.time) {
            (Some((a, Some(x))), Some((b, Some(y)))) => {
                let instant = |days: i64, ns: i64, offset: i64| {
                    i128::from(days) * i128::from(DAY_NS) + i128::from(ns)
                        - i128::from(offset) * 1_000_000_000
                };
                instant(self.days, a, x) == instant(other.days, b, y)
            }
            (Some((a, _)), Some((b, _))) => self.days == other.days && a == b,
            _ => self.days == other.days,
        }
    }
}

/// Read a date. `None` for anything else, a day that is in no calendar, and `3/4/2024` as long as `day_first` does not say which is
/// the month.
///
/// Read are `2024-03-31`, `20240331`, `2024/3/31`, `2024.3.31`; `31.3.2024`; `31/3/2024` and `31-3-2024`, month first where
/// `day_first` is `false`; `31 March 2024`, `31. Mar 2024`, `March 31st, 2024`; after each of those that are numbers alone also a time
/// (`T` or a space, `14:05`, `14:05:59.5`), perhaps with `Z` or `+02:00`.
pub(crate) fn read_date(text: &str, day_first: Option<bool>) -> Option<Moment> {
    let text = text.trim();
    let cut = text.find(['T', 't', ' ']).filter(|at| text[..*at].bytes().all(|b| !b.is_ascii_alphabetic()));
    let (date, time) = match cut {
        Some(at) if text[at + 1..].contains(':') => (&text[..at], Some(&text[at + 1..])),
        _ => (text, None),
    };
    let (year, month, day) = read_numbers(date, day_first).or_else(|| read_words(date))?;
    let time = match time {
        Some(time) => Some(read_time(time)?),
        None => None,
    };
    Some(Moment { days: days_of(year, month, day)?, time })
}

fn read_numbers(date: &str, day_first: Option<bool>) -> Option<(i64, i64, i64)> {
    if date.len() == 8 && date.bytes().all(|b| b.is_ascii_digit()) {
        return Some((number(&date[..4])?, number(&date[4..6])?, number(&date[6..])?));
    }
    let mark = ['-', '/', '.'].into_iter().find(|mark| date.contains(*mark))?;
    let parts: Vec<&str> = date.split(mark).collect();
    let &[a, b, c] = parts.as_slice() else { return None };
    let (x, y, z) = (number(a)?, number(b)?, number(c)?);
    match (a.len(), c.len()) {
        (4, 1..=2) => Some((x, y, z)),
        (1..=2, 4) if mark == '.' || x > 12 || x == y => Some((z, y, x)),
        (1..=2, 4) if y > 12 => Some((z, x, y)),
        (1..=2, 4) => day_first.map(|day_first| if day_first { (z, y, x) } else { (z, x, y) }),
        _ => None,
    }
}

fn read_words(date: &str) -> Option<(i64, i64, i64)> {
    let lower = date.to_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| c.is_whitespace() || c == ',' || c == '.').filter(|w| !w.is_empty()).collect();
    let &[a, b, year] = words.as_slice() else { return None };
    let month_of = |word: &str| {
        MONTHS.iter().zip(1..).find(|(name, _)| word == **name || (word.len() == 3 && name.starts_with(word)))
    };
    let day_of = |word: &str| {
        number(["st", "nd", "rd", "th"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word))
    };
    let year = number(year).filter(|_| year.len() == 4)?;
    match (month_of(a), month_of(b)) {
        (Some((_, month)), None) => Some((year, month, day_of(b)?)),
        (None, Some((_, month))) => Some((year, month, day_of(a)?)),
        _ => None,
    }
}

fn read_time(text: &str) -> Option<(i64, Option<i64>)> {
    let (clock, offset) = match text.find(['Z', 'z', '+', '-']) {
        Some(at) => (text[..at].trim_end(), Some(read_offset(&text[at..])?)),
        None => (text, None),
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let parts: Vec<&str> = clock.split(':').collect();
    let (hours, minutes, seconds) = match parts.as_slice() {
        [h, m] if fraction.is_empty() => (number(h)?, number(m)?, 0),
        [h, m, s] => (number(h)?, number(m)?, number(s)?),
        _ => return None,
    };
    if !fraction.bytes().all(|b| b.is_ascii_digit()) || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    let ns = number(&format!("{fraction:0<9.9}"))?;
    Some((((hours * 60 + minutes) * 60 + seconds) * 1_000_000_000 + ns, offset))
}

fn read_offset(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let digits = text[1..].replace(':', "");
    let (hours, minutes) = match digits.len() {
        2 => (number(&digits)?, 0),
        4 if digits.is_ascii() => (number(&digits[..2])?, number(&digits[2..])?),
        _ => return None,
    };
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 60 + minutes) * 60)
}

/// ASCII digits alone, at most nine of them.
fn number(text: &str) -> Option<i64> {
    let is_number = (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// Days since 1970-01-01, by counting from the 1st of March so that the leap day is the last of a year (Hinnant,
/// "chrono-compatible low-level date algorithms"). `None` for a day that the month has not.
fn days_of(year: i64, month: i64, day: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let in_month = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=in_month).contains(&day) {
        return None;
    }
    let (from_march, year) = ((month + 9) % 12, year - i64::from(month < 3));
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    Some(
        365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_day_is_read_from_all_its_forms() {
        let day = read_date("2024-03-31", None).unwrap();
        assert_eq!((day.days, day.time), (19_813, None));
        for text in [
            "20240331",
            "2024/3/31",
            "2024.03.31",
            "31.3.2024",
            "31/03/2024",
            "03/31/2024",
            "31-3-2024",
            "31 March 2024",
            "31. Mar. 2024",
            "March 31st, 2024",
            " mar 31 2024 ",
            "2024-03-31T00:10:00Z",
            "31.03.2024 14:05",
        ] {
            assert!(read_date(text, None).is_some_and(|other| other.is_same_as(day)), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_or_could_be_two_is_none() {
        for text in [
            "",
            "2023-02-29",
            "2024-13-01",
            "2024-00-10",
            "31.4.2024",
            "3/4/2024",
            "2024",
            "24-03-31",
            "soon",
            "1.2",
            "2024-03-31T25:00",
            "31 Smarch 2024",
            "May May 2024",
            "2024-03-31T10:00+9",
            "2024-03-31T1:2:3.x",
            "٢٠٢٤-٠٣-٣١",
            "99999999999-1-1",
            "2024-03-31T",
            "é2024-03-31",
        ] {
            assert_eq!(read_date(text, None), None, "{text}");
        }
        assert_eq!(read_date("3/4/2024", Some(true)), read_date("2024-04-03", None));
        assert_eq!(read_date("3/4/2024", Some(false)), read_date("2024-03-04", None));
        assert_eq!(read_date("4/4/2024", None), read_date("2024-04-04", None));
    }

    #[test]
    fn instants_are_compared_where_both_have_an_offset() {
        let same = |a, b| read_date(a, None).unwrap().is_same_as(read_date(b, None).unwrap());
        assert!(same("2024-01-01T00:30:00+01:00", "2023-12-31T23:30Z"));
        assert!(!same("2024-01-01T00:30:00+01:00", "2024-01-01T00:30:00Z"));
        assert!(same("2024-01-01T00:30:00+01:00", "2024-01-01 00:30"));
        assert!(same("2024-01-01T00:00:00.5Z", "2024-01-01T00:00:00.500-0000"));
        assert!(!same("2024-01-01T10:00", "2024-01-01T11:00"));
    }
}
