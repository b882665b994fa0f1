//! Invented names of people, places and products.
//!
//! A name that is built from syllables belongs to one of three pools by its hash: the corpus, the training rows and the
//! rows held out draw from the same distribution and yet share no built name.

use crate::dice::Dice;
use taper_kernels::rng::stream_of;

/// Who may use a built name or code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pool {
    /// The corpus that the base is trained on.
    Corpus,
    /// The training rows of a task.
    Train,
    /// What only validation and test rows contain.
    HeldOut,
}

/// Half of all built words are the corpus's, three in ten are for training rows, two in ten are held out.
pub(crate) fn pool_of(word: &str) -> Pool {
    match (stream_of(&word.to_ascii_lowercase()) >> 24) % 10 {
        0..=4 => Pool::Corpus,
        5..=7 => Pool::Train,
        _ => Pool::HeldOut,
    }
}

/// Draw until the word belongs to `pool`.
pub(crate) fn in_pool(dice: &mut Dice, pool: Pool, draw: impl Fn(&mut Dice) -> String) -> String {
    loop {
        let word = draw(dice);
        if pool_of(&word) == pool {
            return word;
        }
    }
}

const ONSETS: &[&str] = &[
    "b", "br", "c", "d", "dr", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v",
    "w", "z",
];
const VOWELS: &[&str] = &["a", "a", "e", "e", "i", "i", "o", "o", "u", "ai"];
const CODAS: &[&str] = &["", "", "", "", "n", "r", "l", "s", "m", "nd", "x"];
const SURNAME_ENDS: &[&str] =
    &["", "", "son", "man", "ley", "ton", "ski", "er", "ini", "ova", "ez", "berg", "kar", "ado"];
const PLACE_ENDS: &[&str] =
    &["ford", "ton", "field", "mere", "wick", "bury", "dale", "port", "haven", "stead", "burgh"];
const PRODUCT_ENDS: &[&str] = &["ix", "ora", "ly", "io", "ara", "eon", "ium", "ify", "us", "ent"];

/// One syllable.
fn syllable(dice: &mut Dice) -> String {
    format!("{}{}{}", dice.pick(ONSETS), dice.pick(VOWELS), dice.pick(CODAS))
}

/// The word with its first letter in upper case.
pub(crate) fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// A lower-case word of one or two syllables that means nothing.
pub(crate) fn nonsense(dice: &mut Dice, pool: Pool) -> String {
    in_pool(dice, pool, |dice| (0..dice.between(1, 2)).map(|_| syllable(dice)).collect())
}

fn built(dice: &mut Dice, pool: Pool, ends: &[&str]) -> String {
    in_pool(dice, pool, |dice| {
        let body: String = (0..dice.between(1, 2)).map(|_| syllable(dice)).collect();
        capitalised(&format!("{body}{}", dice.pick(ends)))
    })
}

/// A surname made of syllables.
pub(crate) fn built_surname(dice: &mut Dice, pool: Pool) -> String {
    built(dice, pool, SURNAME_ENDS)
}

/// A town made of syllables.
pub(crate) fn built_place(dice: &mut Dice, pool: Pool) -> String {
    built(dice, pool, PLACE_ENDS)
}

/// A product or a firm made of syllables.
pub(crate) fn built_product(dice: &mut Dice, pool: Pool) -> String {
    built(dice, pool, PRODUCT_ENDS)
}

/// First names of the corpus.
pub(crate) const CORPUS_FIRST: &[&str] = &[
    "Anna", "Peter", "Maria", "John", "Lucy", "Omar", "Ivan", "Nina", "Paul", "Clara", "Hugo", "Elena",
    "Samir", "Ruth", "Tomas", "Aisha", "Victor", "Julia", "Leon", "Helen", "Carlos", "Ingrid", "Dennis",
    "Priya", "Martin", "Sofia", "Kenji", "Laura", "Felix", "Amara", "Oscar", "Greta", "Nils", "Tara",
    "Simon", "Yara", "Edgar", "Lena", "Boris", "Mona", "Rashid", "Irene", "Colin", "Wanda", "Ahmed", "Paula",
    "Gavin", "Olga", "Marco", "Stella",
];

/// Surnames of the corpus, beside the built ones.
pub(crate) const CORPUS_SURNAMES: &[&str] = &[
    "Walker", "Novak", "Silva", "Keller", "Brandt", "Ortiz", "Haas", "Lopez", "Murphy", "Tanaka", "Weber",
    "Rossi", "Dubois", "Costa", "Lindgren", "Ahmadi", "Petrov", "Moreau", "Fischer", "Kaya", "Doyle",
    "Farrell", "Gupta", "Hansen", "Ibrahim", "Jansen", "Kowalski", "Larsen", "Mensah", "Nakamura",
];

/// First names of the tasks' training rows.
pub(crate) const TASK_FIRST: &[&str] = &[
    "James", "Mary", "Robert", "Linda", "David", "Susan", "George", "Karen", "Edward", "Nancy", "Brian",
    "Sandra", "Kevin", "Donna", "Jason", "Emily", "Ryan", "Amanda", "Jacob", "Rachel", "Eric", "Janet",
    "Scott", "Maya", "Adam", "Noor", "Walter", "Diane", "Kyle", "Alice", "Arthur", "Judith", "Louis",
    "Teresa", "Philip", "Gloria",
];

/// First names that only held-out rows contain.
pub(crate) const HELD_FIRST: &[&str] = &[
    "Harold", "Beatrice", "Dmitri", "Fatima", "Gordon", "Imogen", "Malik", "Rosalind", "Stanley", "Thea",
    "Ulrich", "Zara",
];

/// Surnames of the tasks' training rows, beside the built ones.
pub(crate) const TASK_SURNAMES: &[&str] = &[
    "Harper",
    "Osborne",
    "Chandra",
    "Fletcher",
    "Vargas",
    "Okafor",
    "Whitaker",
    "Nguyen",
    "Barnes",
    "Delgado",
    "Ellison",
    "Foster",
    "Grant",
    "Holloway",
    "Jennings",
    "Kessler",
    "Lambert",
    "Mercer",
    "Norris",
    "Palmer",
    "Quinn",
    "Ramsey",
    "Sato",
    "Tucker",
    "Underhill",
    "Vaughn",
    "Watkins",
    "Yates",
    "Zimmer",
    "Abbott",
];

/// Surnames that only held-out rows contain.
pub(crate) const HELD_SURNAMES: &[&str] = &[
    "Carver",
    "Dunmore",
    "Eastman",
    "Galloway",
    "Hendry",
    "Ishikawa",
    "Kimball",
    "Lovell",
    "Marchetti",
    "Oduya",
    "Pemberton",
    "Rhodes",
    "Sinclair",
    "Thornton",
    "Valdez",
];

/// A first name.
pub(crate) fn first_name(dice: &mut Dice, pool: Pool) -> String {
    let from_list = match pool {
        Pool::Corpus => CORPUS_FIRST,
        Pool::Train => TASK_FIRST,
        Pool::HeldOut => HELD_FIRST,
    };
    if pool == Pool::Corpus && dice.chance(50) {
        return in_pool(dice, pool, |dice| {
            capitalised(&format!("{}{}", syllable(dice), dice.pick(&["a", "o", "in", "el", "is", "ie"])))
        });
    }
    dice.pick(from_list).to_owned()
}

/// A surname: half from a list, half built.
pub(crate) fn surname(dice: &mut Dice, pool: Pool) -> String {
    let (from_list, percent) = match pool {
        Pool::Corpus => (CORPUS_SURNAMES, 12),
        Pool::Train => (TASK_SURNAMES, 50),
        Pool::HeldOut => (HELD_SURNAMES, 50),
    };
    if dice.chance(percent) { dice.pick(from_list).to_owned() } else { built_surname(dice, pool) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::code;

    #[test]
    fn built_names_and_codes_of_two_pools_are_never_the_same() {
        let mut dice = Dice::new(1, "pools", 0);
        for pool in [Pool::Corpus, Pool::Train, Pool::HeldOut] {
            for draw in [built_surname, built_place, built_product, nonsense, code] {
                for _ in 0..200 {
                    assert_eq!(pool_of(&draw(&mut dice, pool)), pool);
                }
            }
        }
    }

    #[test]
    fn listed_names_of_held_out_rows_stand_in_no_training_row() {
        assert!(HELD_FIRST.iter().all(|name| !TASK_FIRST.contains(name)));
        assert!(HELD_SURNAMES.iter().all(|name| !TASK_SURNAMES.contains(name)));
    }
}
