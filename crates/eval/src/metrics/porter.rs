//! Porter's stemmer, in the form that ROUGE scores are computed with.
//!
//! Source: Porter, "An algorithm for suffix stripping", Program 14(3), 1980, with the changes of NLTK's default mode, which
//! rouge-score uses: a few irregular words, `ies`/`ied` of four letters, `y` after a consonant, `bli`, `fulli`, `logi`.
//! Words are lower-case ASCII letters and digits; a digit counts as a consonant.

/// A condition on what is left without a suffix.
type Condition = fn(&[u8]) -> bool;

const IRREGULAR: [(&str, &str); 15] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
];

/// The stem of a word.
pub(crate) fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    if word == "succeed" || word.len() <= 2 || !word.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return word.to_owned();
    }
    let mut word = word.as_bytes().to_vec();
    for step in [plural, past, final_y, double_suffix, single_suffix, bare_suffix, final_e, final_ll] {
        word = step(word);
    }
    word.into_iter().map(char::from).collect()
}

/// For each letter whether it is a consonant: none of `aeiou`, and `y` unless a consonant stands before it.
fn consonants(word: &[u8]) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::with_capacity(word.len());
    for letter in word {
        flags.push(match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !flags.last().copied().unwrap_or(false),
            _ => true,
        });
    }
    flags
}

/// How often a vowel is followed by a consonant: Porter's m.
fn measure(stem: &[u8]) -> usize {
    consonants(stem).windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

fn is_measured(stem: &[u8]) -> bool {
    measure(stem) > 0
}

fn is_long(stem: &[u8]) -> bool {
    measure(stem) > 1
}

fn has_vowel(stem: &[u8]) -> bool {
    consonants(stem).contains(&false)
}

fn ends_double_consonant(word: &[u8]) -> bool {
    matches!(word, [.., a, b] if a == b) && consonants(word).last() == Some(&true)
}

/// Consonant, vowel, consonant that is not `w`, `x` or `y`; or a word of a vowel and a consonant.
fn ends_cvc(word: &[u8]) -> bool {
    match *consonants(word) {
        [false, true] => true,
        [.., true, false, true] => !matches!(word.last(), Some(b'w' | b'x' | b'y')),
        _ => false,
    }
}

/// The word by the first rule whose suffix it has, if the condition holds of the rest; no further rule is tried.
fn apply(word: Vec<u8>, rules: &[(&str, &str, Condition)]) -> Vec<u8> {
    for (suffix, replacement, condition) in rules {
        if let Some(rest) = word.strip_suffix(suffix.as_bytes()) {
            return if condition(rest) { [rest, replacement.as_bytes()].concat() } else { word };
        }
    }
    word
}

fn always(_: &[u8]) -> bool {
    true
}

/// Step 1a.
fn plural(word: Vec<u8>) -> Vec<u8> {
    if word.len() == 4 && word.ends_with(b"ies") {
        return word[..3].to_vec();
    }
    apply(word, &[("sses", "ss", always), ("ies", "i", always), ("ss", "ss", always), ("s", "", always)])
}

/// Step 1b.
fn past(word: Vec<u8>) -> Vec<u8> {
    if word.ends_with(b"ied") {
        let kept = if word.len() == 4 { 1 } else { 2 };
        return word[..word.len() - kept].to_vec();
    }
    if word.ends_with(b"eed") {
        return apply(word, &[("eed", "ee", is_measured)]);
    }
    let rest = ["ed", "ing"].iter().find_map(|suffix| {
        word.strip_suffix(suffix.as_bytes()).filter(|rest| has_vowel(rest)).map(<[u8]>::to_vec)
    });
    let Some(mut rest) = rest else { return word };
    if ["at", "bl", "iz"].iter().any(|end| rest.ends_with(end.as_bytes())) {
        rest.push(b'e');
    } else if ends_double_consonant(&rest) {
        if !matches!(rest.last(), Some(b'l' | b's' | b'z')) {
            rest.pop();
        }
    } else if measure(&rest) == 1 && ends_cvc(&rest) {
        rest.push(b'e');
    }
    rest
}

/// Step 1c.
fn final_y(word: Vec<u8>) -> Vec<u8> {
    apply(word, &[("y", "i", |rest| rest.len() > 1 && consonants(rest).last() == Some(&true))])
}

/// Step 2.
fn double_suffix(word: Vec<u8>) -> Vec<u8> {
    if let Some(rest) = word.strip_suffix(b"alli").filter(|rest| is_measured(rest)) {
        return double_suffix([rest, b"al"].concat());
    }
    apply(
        word,
        &[
            ("ational", "ate", is_measured),
            ("tional", "tion", is_measured),
            ("enci", "ence", is_measured),
            ("anci", "ance", is_measured),
            ("izer", "ize", is_measured),
            ("bli", "ble", is_measured),
            ("alli", "al", is_measured),
            ("entli", "ent", is_measured),
            ("eli", "e", is_measured),
            ("ousli", "ous", is_measured),
            ("ization", "ize", is_measured),
            ("ation", "ate", is_measured),
            ("ator", "ate", is_measured),
            ("alism", "al", is_measured),
            ("iveness", "ive", is_measured),
            ("fulness", "ful", is_measured),
            ("ousness", "ous", is_measured),
            ("aliti", "al", is_measured),
            ("iviti", "ive", is_measured),
            ("biliti", "ble", is_measured),
            ("fulli", "ful", is_measured),
            // The `l` is measured with the stem, so that `geology` is shortened as `archaeology` is.
            ("logi", "log", |rest| is_measured(&[rest, b"l"].concat())),
        ],
    )
}

/// Step 3.
fn single_suffix(word: Vec<u8>) -> Vec<u8> {
    apply(
        word,
        &[
            ("icate", "ic", is_measured),
            ("ative", "", is_measured),
            ("alize", "al", is_measured),
            ("iciti", "ic", is_measured),
            ("ical", "ic", is_measured),
            ("ful", "", is_measured),
            ("ness", "", is_measured),
        ],
    )
}

/// Step 4.
fn bare_suffix(word: Vec<u8>) -> Vec<u8> {
    apply(
        word,
        &[
            ("al", "", is_long),
            ("ance", "", is_long),
            ("ence", "", is_long),
            ("er", "", is_long),
            ("ic", "", is_long),
            ("able", "", is_long),
            ("ible", "", is_long),
            ("ant", "", is_long),
            ("ement", "", is_long),
            ("ment", "", is_long),
            ("ent", "", is_long),
            ("ion", "", |rest| is_long(rest) && matches!(rest.last(), Some(b's' | b't'))),
            ("ou", "", is_long),
            ("ism", "", is_long),
            ("ate", "", is_long),
            ("iti", "", is_long),
            ("ous", "", is_long),
            ("ive", "", is_long),
            ("ize", "", is_long),
        ],
    )
}

/// Step 5a.
fn final_e(word: Vec<u8>) -> Vec<u8> {
    apply(word, &[("e", "", |rest| measure(rest) > 1 || (measure(rest) == 1 && !ends_cvc(rest)))])
}

/// Step 5b.
fn final_ll(word: Vec<u8>) -> Vec<u8> {
    apply(word, &[("ll", "l", |rest| is_long(&[rest, b"l"].concat()))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stems_are_those_of_the_paper_and_of_its_changes() {
        for (word, expected) in [
            ("caresses", "caress"),
            ("ponies", "poni"),
            ("dies", "die"),
            ("agreed", "agre"),
            ("feed", "feed"),
            ("hopping", "hop"),
            ("falling", "fall"),
            ("filing", "file"),
            ("happy", "happi"),
            ("enjoy", "enjoy"),
            ("relational", "relat"),
            ("geology", "geolog"),
            ("replacement", "replac"),
            ("controlling", "control"),
            ("skies", "sky"),
            ("succeed", "succeed"),
            ("1990s", "1990"),
            ("yyyyyy", "yyyyyi"),
        ] {
            assert_eq!(stem(word), expected, "{word}");
        }
    }
}
