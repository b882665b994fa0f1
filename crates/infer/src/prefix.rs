//! Pages of keys and values that outlive their request, for the next one that begins with the same tokens.
//!
//! A page is found by a hash over everything that its numbers depend on beside the model: the adapters by their content and scale, every
//! token up to its end, and which frequencies turn the text where that depends on its length. A salt keeps apart requests that must not learn
//! of each other by their timing.

use crate::service::ScaledAdapter;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use taper_nn::{KvPage, PAGE_TOKENS};
use taper_text::ContentHash;

/// The hash of a page and of all before it.
pub(crate) type PageKey = [u8; 32];

/// What the pages of a text begin with. One cache belongs to one model, so the base needs no part in it.
pub(crate) fn root(adapters: &[ScaledAdapter], salt: Option<&str>, is_long: bool) -> PageKey {
    let mut hash = ContentHash::new("taper key-value pages");
    for scaled in adapters {
        hash.add(scaled.adapter.sha256());
        hash.add_number(scaled.scale.to_bits());
    }
    hash.add_number(adapters.len() as u64);
    hash.add_number(u64::from(salt.is_some()));
    hash.add(salt.unwrap_or_default().as_bytes());
    hash.add_number(u64::from(is_long));
    hash.finish()
}

/// The keys of the whole pages of a text, from `root`.
pub(crate) fn keys(root: PageKey, tokens: &[u32]) -> impl Iterator<Item = PageKey> {
    tokens.chunks_exact(PAGE_TOKENS).scan(root, |previous, page| {
        let mut hash = ContentHash::new("taper key-value page");
        hash.add(&*previous);
        page.iter().for_each(|&token| hash.add_number(u64::from(token)));
        *previous = hash.finish();
        Some(*previous)
    })
}

/// The pages, those used longest ago first in line to go.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    pages: HashMap<PageKey, Kept>,
    by_use: BTreeMap<u64, PageKey>,
    clock: u64,
}

#[derive(Debug)]
struct Kept {
    page: Arc<KvPage>,
    used: u64,
}

impl PrefixCache {
    /// The pages of the longest run of `keys`, from the first, that is here.
    pub(crate) fn find(&mut self, keys: &[PageKey]) -> Vec<Arc<KvPage>> {
        let found: Vec<Arc<KvPage>> =
            keys.iter().map_while(|key| self.pages.get(key)).map(|kept| kept.page.clone()).collect();
        // From the back: a page is of use only with all before it, so those go last.
        for key in keys[..found.len()].iter().rev() {
            self.touch(key);
        }
        found
    }

    /// Keep a page that is full.
    pub(crate) fn keep(&mut self, key: PageKey, page: &Arc<KvPage>) {
        if !self.pages.contains_key(&key) {
            self.clock += 1;
            self.by_use.insert(self.clock, key);
            self.pages.insert(key, Kept { page: page.clone(), used: self.clock });
        }
    }

    /// Let go of pages that nobody else holds until `bytes` are free; the bytes that came free.
    pub(crate) fn make_room(&mut self, bytes: usize) -> usize {
        let mut freed = 0;
        let mut gone = Vec::new();
        for (&used, key) in &self.by_use {
            if freed >= bytes {
                break;
            }
            let Some(kept) = self.pages.get(key) else { continue };
            if Arc::strong_count(&kept.page) == 1 {
                freed += kept.page.bytes();
                gone.push((used, *key));
            }
        }
        for (used, key) in gone {
            self.by_use.remove(&used);
            self.pages.remove(&key);
        }
        freed
    }

    /// Bytes of pages that nobody else holds.
    pub(crate) fn idle_bytes(&self) -> usize {
        let idle = self.pages.values().filter(|kept| Arc::strong_count(&kept.page) == 1);
        idle.map(|kept| kept.page.bytes()).sum()
    }

    fn touch(&mut self, key: &PageKey) {
        let Some(kept) = self.pages.get_mut(key) else { return };
        self.clock += 1;
        self.by_use.remove(&kept.used);
        kept.used = self.clock;
        self.by_use.insert(self.clock, *key);
    }
}
