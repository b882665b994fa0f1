//! Strings that end a text, found although they come in pieces.

/// Watches a growing text for stop strings and holds back what may become one.
///
/// The stop string whose end comes first ends the text; of those that end there, the longest. So it does not matter in which
/// pieces the text comes.
#[derive(Debug, Clone)]
pub struct StopScanner {
    stops: Vec<String>,
    text: String,
    given: usize,
    /// The index of the stop string that was found.
    hit: Option<usize>,
}

impl StopScanner {
    /// A scanner for these strings, none of them empty.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, text: String::new(), given: 0, hit: None }
    }

    /// The text so far; once a stop string was found, the text before it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a stop string was found.
    pub fn is_stopped(&self) -> bool {
        self.hit.is_some()
    }

    /// The stop string that ended the text.
    pub fn stop(&self) -> Option<&str> {
        self.hit.map(|index| self.stops[index].as_str())
    }

    /// Add `piece`; gives the text that can be shown now.
    pub fn push(&mut self, piece: &str) -> &str {
        if self.is_stopped() {
            return "";
        }
        let scanned = self.text.len();
        self.text.push_str(piece);
        if let Some((at, index)) = self.first_stop(scanned) {
            self.text.truncate(at);
            self.hit = Some(index);
            return self.give(self.text.len());
        }
        self.give(self.text.len() - self.held_back())
    }

    /// The text that was held back, when no stop string came of it.
    pub fn finish(&mut self) -> &str {
        self.give(self.text.len())
    }

    fn give(&mut self, end: usize) -> &str {
        let start = self.given.min(end);
        self.given = end.max(self.given).min(self.text.len());
        &self.text[start..end]
    }

    /// The start and the index of the stop string that ends first behind byte `scanned`.
    fn first_stop(&self, scanned: usize) -> Option<(usize, usize)> {
        let found = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let mut from = (scanned + 1).saturating_sub(stop.len());
            while !self.text.is_char_boundary(from) {
                from -= 1;
            }
            let at = from + self.text[from..].find(stop.as_str())?;
            Some((at + stop.len(), at, index))
        });
        found.min().map(|(_, at, index)| (at, index))
    }

    /// The length of the longest end of the text that a stop string begins with.
    fn held_back(&self) -> usize {
        let longest = |stop: &String| {
            (1..stop.len())
                .rev()
                .filter(|&n| stop.is_char_boundary(n))
                .find(|&n| self.text.ends_with(&stop[..n]))
                .unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut scanner = StopScanner::new(stops);
        let mut shown: Vec<String> = pieces.iter().map(|p| scanner.push(p).to_owned()).collect();
        if !scanner.is_stopped() {
            shown.push(scanner.finish().to_owned());
        }
        (shown, scanner.text().to_owned(), scanner.is_stopped())
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_found_and_never_shown() {
        let (shown, text, stopped) = scan(&["\nUser:"], &["hi", "\n", "Us", "er", ": more", "x"]);
        assert_eq!((shown.concat().as_str(), text.as_str(), stopped), ("hi", "hi", true));
        assert_eq!(shown, ["hi", "", "", "", "", ""]);
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_shown_late_but_whole() {
        let (shown, text, stopped) = scan(&["END", "é!"], &["aE", "N", "Cé", "?", "EN"]);
        assert_eq!(shown, ["a", "", "ENC", "é?", "", "EN"]);
        assert_eq!((text.as_str(), stopped), ("aENCé?EN", false));
    }

    #[test]
    fn the_earliest_of_several_stop_strings_wins() {
        let (shown, text, stopped) = scan(&["cd", "b"], &["abcd"]);
        assert_eq!((shown.concat().as_str(), text.as_str(), stopped), ("a", "a", true));
        // The stop string overlaps itself: the first occurrence counts.
        let (_, text, _) = scan(&["aa"], &["xa", "aa"]);
        assert_eq!(text, "x");
    }

    #[test]
    fn scanning_piecewise_equals_scanning_the_whole_for_every_cut() {
        let text = "abab\u{e9}ababc\u{1F30D}abc";
        let whole = text.find("ababc").unwrap();
        let cuts: Vec<usize> = (0..=text.len()).filter(|&i| text.is_char_boundary(i)).collect();
        for &a in &cuts {
            for &b in cuts.iter().filter(|&&b| b >= a) {
                let (shown, kept, stopped) = scan(&["ababc"], &[&text[..a], &text[a..b], &text[b..]]);
                assert!(stopped, "cut at {a} and {b}");
                assert_eq!((kept.as_str(), shown.concat().as_str()), (&text[..whole], &text[..whole]));
            }
        }
    }

    #[test]
    fn the_scanner_tells_which_stop_string_it_was() {
        let stop_of = |stops: &[&str], text: &str| {
            let mut scanner = StopScanner::new(stops.iter().map(|s| (*s).to_owned()).collect());
            scanner.push(text);
            scanner.stop().map(str::to_owned)
        };
        assert_eq!(stop_of(&["cd", "b"], "abcd").as_deref(), Some("b"));
        assert_eq!(stop_of(&["d", "bcd"], "abcd").as_deref(), Some("bcd"));
        assert_eq!(stop_of(&["x", "x"], "x").as_deref(), Some("x"));
        assert_eq!(stop_of(&["e"], "abcd"), None);
    }

    /// Stop strings inside and over one another: whatever the pieces, the same one ends the text at the same place.
    #[test]
    fn overlapping_stop_strings_end_a_text_the_same_way_for_every_cut() {
        let sets: [&[&str]; 4] = [&["abcd", "bc"], &["bc", "abc"], &["aab", "ab", "b"], &["caa", "aac"]];
        for stops in sets {
            for code in 0..3usize.pow(6) {
                let text: String =
                    (0..6).map(|i| char::from(b'a' + (code / 3usize.pow(i) % 3) as u8)).collect::<String>()
                        + "d";
                let at_once = ended(stops, &[&text]);
                let by_letter: Vec<&str> = (0..text.len()).map(|i| &text[i..=i]).collect();
                assert_eq!(ended(stops, &by_letter), at_once, "{stops:?} in {text}");
                assert_eq!(ended(stops, &[&text[..3], &text[3..]]), at_once, "{stops:?} in {text}");
            }
        }
    }

    fn ended(stops: &[&str], pieces: &[&str]) -> (String, String, Option<String>) {
        let mut scanner = StopScanner::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut shown: String = pieces.iter().map(|piece| scanner.push(piece).to_owned()).collect();
        if !scanner.is_stopped() {
            shown.push_str(scanner.finish());
        }
        (shown, scanner.text().to_owned(), scanner.stop().map(str::to_owned))
    }
}
