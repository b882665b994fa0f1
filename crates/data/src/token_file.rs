//! The file that keeps the tokens of one chunk of examples. Numbers are little-endian.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `TAPERTOK` |
//! | 32 | the key: what the tokens were made from |
//! | 4 | examples |
//! | 8 | bytes of the records |
//! | ... | the records, one an example |
//! | 32 | SHA-256 of all before |
//!
//! A record is a zero for an example that could not be encoded (it is tried again, so that it is told again), or a one, the
//! number of its tokens, its five facts, the token ids, and the loss mask, a bit a token. All numbers have four bytes.
//!
//! Such a file is trusted no more than any other that may have been cut short or tampered with: nothing is allocated that its
//! length does not bear out.

use crate::encode::{Encoded, EncodedFacts};
use crate::error::Result;
use taper_text::ContentHash;

/// What such files begin with.
const MAGIC: &[u8; 8] = b"TAPERTOK";
/// Magic, key, number of examples, bytes of the records.
const HEADER_BYTES: usize = 8 + 32 + 4 + 8;
const CHECKSUM_BYTES: usize = 32;
/// The longest file that is written or read: some 60 million tokens, where a chunk has seldom over four.
pub(crate) const MAX_FILE_BYTES: u64 = 256 << 20;

/// A name for a chunk of examples and all else that their tokens depend on.
pub(crate) type ChunkKey = [u8; 32];

/// What is wrong with a file, in words that follow on its name.
pub(crate) type Broken = &'static str;

/// The file's bytes; `None` when a number is too large for it.
pub(crate) fn write(key: &ChunkKey, encoded: &[Result<Encoded>]) -> Option<Vec<u8>> {
    let mut records = Vec::new();
    for one in encoded {
        match one {
            Ok(encoded) => write_record(encoded, &mut records)?,
            Err(_) => records.push(0),
        }
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + records.len() + CHECKSUM_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(key);
    bytes.extend(u32::try_from(encoded.len()).ok()?.to_le_bytes());
    bytes.extend((records.len() as u64).to_le_bytes());
    bytes.extend(records);
    let checksum = checksum(&bytes);
    bytes.extend(checksum);
    (bytes.len() as u64 <= MAX_FILE_BYTES).then_some(bytes)
}

/// The tokens of `examples` examples; `None` for each that could not be encoded.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn read(bytes: &[u8], key: &ChunkKey, examples: usize) -> Result<Vec<Option<Encoded>>, Broken> {
    let (content, end) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or("is cut short")?;
    let mut header = Reader(content);
    if header.take::<8>()? != MAGIC {
        return Err("is of another kind");
    }
    if header.take::<32>()? != key {
        return Err("belongs to other examples");
    }
    if header.number()? as usize != examples {
        return Err("has another number of examples");
    }
    if u64::from_le_bytes(*header.take()?) != header.0.len() as u64 {
        return Err("has another length than it says");
    }
    if checksum(content) != *end {
        return Err("has a wrong checksum");
    }
    let mut records = header;
    let list = (0..examples).map(|_| read_record(&mut records)).collect::<Result<_, _>>()?;
    if records.0.is_empty() { Ok(list) } else { Err("goes on behind its last record") }
}

fn write_record(encoded: &Encoded, records: &mut Vec<u8>) -> Option<()> {
    let Encoded { input_ids, loss_mask, facts } = encoded;
    let EncodedFacts {
        answers,
        answers_without_stop,
        unstable_prompts,
        straddling_answers,
        specials_in_content,
    } = *facts;
    records.push(1);
    for number in [
        input_ids.len(),
        answers,
        answers_without_stop,
        unstable_prompts,
        straddling_answers,
        specials_in_content,
    ] {
        records.extend(u32::try_from(number).ok()?.to_le_bytes());
    }
    records.extend(input_ids.iter().flat_map(|id| id.to_le_bytes()));
    let bit = |(place, learned): (usize, &bool)| u8::from(*learned) << place;
    records.extend(loss_mask.chunks(8).map(|bits| bits.iter().enumerate().map(bit).sum::<u8>()));
    Some(())
}

fn read_record(records: &mut Reader<'_>) -> Result<Option<Encoded>, Broken> {
    match records.take::<1>()? {
        [0] => return Ok(None),
        [1] => {}
        _ => return Err("has a record of another kind"),
    }
    let tokens = records.number()? as usize;
    let mut fact = || records.number().map(|number| number as usize);
    let facts = EncodedFacts {
        answers: fact()?,
        answers_without_stop: fact()?,
        unstable_prompts: fact()?,
        straddling_answers: fact()?,
        specials_in_content: fact()?,
    };
    let ids = records.bytes(tokens.checked_mul(4).ok_or("is cut short")?)?;
    let input_ids = ids.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect::<Vec<_>>();
    let bits = records.bytes(tokens.div_ceil(8))?;
    let loss_mask = (0..tokens).map(|at| bits[at / 8] >> (at % 8) & 1 == 1).collect();
    Ok(Some(Encoded { input_ids, loss_mask, facts }))
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hash = ContentHash::new("token file");
    hash.add(content);
    hash.finish()
}

/// The bytes that are left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], Broken> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, Broken> {
        self.take().map(|bytes| u32::from_le_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use proptest::prelude::*;

    const KEY: ChunkKey = [7; 32];

    fn encoded(mask: &[bool], facts: [usize; 5]) -> Encoded {
        Encoded {
            input_ids: (0..mask.len() as u32).map(|at| at.wrapping_mul(0x9E37_79B9)).collect(),
            loss_mask: mask.to_vec(),
            facts: EncodedFacts {
                answers: facts[0],
                answers_without_stop: facts[1],
                unstable_prompts: facts[2],
                straddling_answers: facts[3],
                specials_in_content: facts[4],
            },
        }
    }

    fn some() -> Vec<Result<Encoded>> {
        let mask: Vec<bool> = (0..21).map(|at| at % 3 == 0).collect();
        vec![Ok(encoded(&mask, [1, 2, 3, 4, 5])), Err(Error::NoExamples), Ok(Encoded::default())]
    }

    /// The bytes with a checksum that fits them.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let end = bytes.len() - CHECKSUM_BYTES;
        let checksum = checksum(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum);
        bytes
    }

    #[test]
    fn what_cannot_be_a_file_of_these_examples_is_refused_and_says_why() {
        let bytes = write(&KEY, &some()).unwrap();
        assert_eq!(read(&bytes, &[8; 32], 3), Err("belongs to other examples"));
        assert_eq!(read(&bytes, &KEY, 2), Err("has another number of examples"));
        assert_eq!(read(&bytes[..20], &KEY, 3), Err("is cut short"));
        assert_eq!(read(b"", &KEY, 3), Err("is cut short"));
        assert_eq!(read(&[1; 200], &KEY, 3), Err("is of another kind"));
        let mut flipped = bytes.clone();
        flipped[HEADER_BYTES + 30] ^= 1;
        assert_eq!(read(&flipped, &KEY, 3), Err("has a wrong checksum"));
        let with = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            read(&sealed(bytes), &KEY, 3)
        };
        assert_eq!(with(HEADER_BYTES, 2), Err("has a record of another kind"));
        // A number of tokens that no such file holds: nothing is allocated for it.
        assert_eq!(with(HEADER_BYTES + 4, 0xFF), Err("is cut short"));
        assert_eq!(with(HEADER_BYTES + 1, 20), Err("has a record of another kind"));
        let mut longer = bytes.clone();
        let records = (bytes.len() - HEADER_BYTES - CHECKSUM_BYTES + 1) as u64;
        longer[HEADER_BYTES - 8..HEADER_BYTES].copy_from_slice(&records.to_le_bytes());
        longer.insert(bytes.len() - CHECKSUM_BYTES, 0);
        assert_eq!(read(&sealed(longer), &KEY, 3), Err("goes on behind its last record"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            all in prop::collection::vec(prop::option::of((prop::collection::vec(any::<bool>(), 0..70), prop::array::uniform5(0usize..9))), 0..9),
        ) {
            let all: Vec<Option<Encoded>> = all.iter().map(|one| one.as_ref().map(|(m, f)| encoded(m, *f))).collect();
            let results: Vec<Result<Encoded>> = all.iter().map(|one| one.clone().ok_or(Error::NoExamples)).collect();
            let bytes = write(&KEY, &results).unwrap();
            prop_assert_eq!(read(&bytes, &KEY, all.len()), Ok(all));
        }

        #[test]
        fn a_file_with_any_byte_changed_or_cut_anywhere_is_refused(at in 0usize..1000, with in 1u8.., cut: bool) {
            let mut bytes = write(&KEY, &some()).unwrap();
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] ^= with }
            prop_assert!(read(&bytes, &KEY, 3).is_err());
        }

        #[test]
        fn records_of_any_bytes_never_panic(records in prop::collection::vec(any::<u8>(), 0..300), examples in 0usize..9) {
            let mut bytes = [MAGIC.as_slice(), &KEY, &(examples as u32).to_le_bytes()].concat();
            bytes.extend((records.len() as u64).to_le_bytes());
            bytes.extend(records);
            bytes.extend([0; CHECKSUM_BYTES]);
            let _ = read(&sealed(bytes), &KEY, examples);
        }
    }
}
