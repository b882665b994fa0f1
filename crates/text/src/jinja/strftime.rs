//! `strftime_now`: the date that some templates put into the system prompt.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment in UTC, by the proleptic Gregorian calendar.
struct Moment {
    year: i64,
    month: usize,
    day: u32,
    weekday: usize,
    yearday: u32,
    second_of_day: u64,
}

/// `time` in UTC by Python's `strftime` directives; `Err` names one that is not known.
pub(crate) fn strftime(format: &str, time: SystemTime) -> Result<String, String> {
    let moment = moment(time);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next().ok_or("a `%` at the end of the format")?;
        let padded = directive != '-';
        if !padded {
            directive = chars.next().ok_or("a `%-` at the end of the format")?;
        }
        out.push_str(&expand(&moment, directive, padded)?);
    }
    Ok(out)
}

fn expand(m: &Moment, directive: char, padded: bool) -> Result<String, String> {
    let two = |n: u64| if padded { format!("{n:02}") } else { n.to_string() };
    let (hour, minute, second) = (m.second_of_day / 3600, m.second_of_day / 60 % 60, m.second_of_day % 60);
    let month = m.month as u64 + 1;
    Ok(match directive {
        'Y' => m.year.to_string(),
        'y' => two(m.year.rem_euclid(100) as u64),
        'm' => two(month),
        'B' => MONTHS[m.month].into(),
        'b' | 'h' => MONTHS[m.month][..3].into(),
        'd' => two(u64::from(m.day)),
        'e' => format!("{:>2}", m.day),
        'A' => DAYS[m.weekday].into(),
        'a' => DAYS[m.weekday][..3].into(),
        'w' => m.weekday.to_string(),
        'u' => if m.weekday == 0 { 7 } else { m.weekday }.to_string(),
        'j' if padded => format!("{:03}", m.yearday),
        'j' => m.yearday.to_string(),
        'H' => two(hour),
        'I' => two((hour + 11) % 12 + 1),
        'M' => two(minute),
        'S' => two(second),
        'p' => if hour < 12 { "AM" } else { "PM" }.into(),
        'F' => format!("{}-{month:02}-{:02}", m.year, m.day),
        'D' => format!("{month:02}/{:02}/{:02}", m.day, m.year.rem_euclid(100)),
        'T' => format!("{hour:02}:{minute:02}:{second:02}"),
        'R' => format!("{hour:02}:{minute:02}"),
        'f' => "000000".into(),
        'z' => "+0000".into(),
        'Z' => "UTC".into(),
        'n' => "\n".into(),
        't' => "\t".into(),
        '%' => "%".into(),
        other => return Err(format!("the directive `%{other}` is not known")),
    })
}

fn moment(time: SystemTime) -> Moment {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX / 2),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX / 2),
    };
    let days = seconds.div_euclid(86_400);
    // Days are counted from 1 March of year 0, so that the leap day is the last of its year: 400 years are 146 097 days.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12;
    let year = era * 400 + year_of_era + i64::from(month < 2);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let before_month = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize];
    Moment {
        year,
        month: month as usize,
        day: day as u32,
        weekday: (days + 4).rem_euclid(7) as usize,
        yearday: before_month + day as u32 + u32::from(leap && month > 1),
        second_of_day: seconds.rem_euclid(86_400) as u64,
    }
}

/// A clock that stands still: seconds since 1970 in UTC.
pub(crate) fn at(unix_seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, format, text) in [
            (0, "%Y-%m-%d %a %j", "1970-01-01 Thu 001"),
            (951_782_400, "%d %b %Y", "29 Feb 2000"),
            (951_868_800, "%d %B %Y, %A, %j", "01 March 2000, Wednesday, 061"),
            (1_721_952_000, "%-d %b %y %F", "26 Jul 24 2024-07-26"),
            (4_107_542_399, "%Y-%m-%d %H:%M:%S %p %I", "2100-02-28 23:59:59 PM 11"),
            (4_107_542_400, "%m/%d", "03/01"),
        ] {
            assert_eq!(strftime(format, at(seconds)).unwrap(), text);
        }
        assert_eq!(strftime("%Q", at(0)).unwrap_err(), "the directive `%Q` is not known");
    }
}
