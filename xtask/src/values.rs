//! Dates, numbers, codes and phone numbers in the many ways that people write them.

use crate::dice::Dice;
use crate::names::{Pool, in_pool};

const MONTHS: &[&str] = &[
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
/// Without 0, 1, I, O: those are misread.
const CODE_LETTERS: &[&str] = &[
    "A", "B", "C", "D", "E", "F", "G", "H", "J", "K", "L", "M", "N", "P", "Q", "R", "S", "T", "U", "V", "W",
    "X", "Y", "Z",
];

/// `n` random digits, the first of them not 0.
pub(crate) fn digits(dice: &mut Dice, n: usize) -> String {
    let mut text = dice.between(1, 9).to_string();
    for _ in 1..n {
        text.push_str(&dice.below(10).to_string());
    }
    text
}

/// `n` random capital letters.
pub(crate) fn letters(dice: &mut Dice, n: usize) -> String {
    (0..n).map(|_| dice.pick(CODE_LETTERS)).collect()
}

/// A month's name.
pub(crate) fn month(dice: &mut Dice) -> &'static str {
    dice.pick(MONTHS)
}

/// A date in one of the formats of the corpus and of the tasks alike: a calendar is nobody's secret.
pub(crate) fn date(dice: &mut Dice) -> String {
    let (year, month, day) = (dice.between(2019, 2026), dice.between(1, 12), dice.between(1, 28));
    let name = MONTHS[month - 1];
    let short: String = name.chars().take(3).collect();
    match dice.below(8) {
        0 => format!("{year}-{month:02}-{day:02}"),
        1 => format!("{day:02}/{month:02}/{year}"),
        2 => format!("{month}/{day}/{}", year % 100),
        3 => format!("{day} {name} {year}"),
        4 => format!("{name} {day}, {year}"),
        5 => format!("{name} {day}"),
        6 => format!("{day} {short}"),
        _ => format!("{day:02}.{month:02}.{year}"),
    }
}

/// A time of day.
pub(crate) fn time(dice: &mut Dice) -> String {
    let (hour, minute) = (dice.below(24), dice.below(60));
    if dice.chance(25) {
        format!("{} {}", dice.between(1, 12), dice.pick(&["am", "pm"]))
    } else {
        format!("{hour:02}:{minute:02}")
    }
}

/// A phone number of the fictional range 555, in several writings.
pub(crate) fn phone(dice: &mut Dice) -> String {
    let (area, line) = (digits(dice, 3), digits(dice, 4));
    match dice.below(4) {
        0 => format!("555-{line}"),
        1 => format!("{area}-555-{line}"),
        2 => format!("({area}) 555-{line}"),
        _ => format!("0{area} 555 {line}"),
    }
}

/// A code such as `KT-20931` or `7X4-QB`, from one of the pools.
pub(crate) fn code(dice: &mut Dice, pool: Pool) -> String {
    in_pool(dice, pool, |dice| match dice.below(7) {
        0 => format!("{}-{}", letters(dice, 2), digits(dice, 5)),
        1 => format!("{}-{}", letters(dice, 1), digits(dice, 4)),
        2 => digits(dice, 6),
        3 => format!("{}{}", letters(dice, 2), digits(dice, 4)),
        4 => format!("{}-{}-{}", letters(dice, 2), digits(dice, 2), digits(dice, 3)),
        5 => format!("{}/{}", digits(dice, 4), letters(dice, 2)),
        _ => format!("{}{}-{}", digits(dice, 1), letters(dice, 1), digits(dice, 3)),
    })
}

/// A version number of two or three parts.
pub(crate) fn version(dice: &mut Dice) -> String {
    let (major, minor) = (dice.between(1, 9), dice.below(13));
    if dice.chance(50) { format!("{major}.{minor}") } else { format!("{major}.{minor}.{}", dice.below(10)) }
}

/// A sum of money.
pub(crate) fn amount(dice: &mut Dice) -> String {
    let whole = dice.between(3, 980);
    match dice.below(3) {
        0 => format!("{whole} euros"),
        1 => format!("${whole}"),
        _ => format!("{whole}.{:02}", dice.below(100)),
    }
}

/// A blood pressure, which looks like a date and is none.
pub(crate) fn blood_pressure(dice: &mut Dice) -> String {
    format!("{}/{}", dice.between(96, 178), dice.between(54, 104))
}
