//! Keys and values of the tokens that a sequence has already seen, in pages that sequences can share.

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{GpuLent, Place, failed};
#[cfg(feature = "cuda")]
use candle_core::Tensor;
use candle_core::bail;
use half::bf16;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use taper_kernels::attention::CachePage;
#[cfg(feature = "cuda")]
use taper_kernels::cuda::{SliceMut, elementwise};
use taper_kernels::floats::{Floats, widen};

/// Tokens in a page.
pub const PAGE_TOKENS: usize = 32;

/// Counts the bytes of pages that are alive.
#[derive(Debug, Clone, Default)]
pub struct CacheMeter(Arc<AtomicUsize>);

impl CacheMeter {
    /// Bytes of the pages that were made with this meter and are still held by somebody.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The cache of one sequence: [`PAGE_TOKENS`] tokens of all blocks to a page.
///
/// Pages are shared: a clone holds the same ones, and whoever writes into a page that others hold gets a copy of it first.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    pages: Vec<Arc<KvPage>>,
    /// Tokens of each block: within a pass the first blocks are ahead.
    tokens: Vec<usize>,
    meter: CacheMeter,
}

/// [`PAGE_TOKENS`] tokens of all blocks.
#[derive(Debug)]
pub struct KvPage {
    blocks: Vec<[Rows; 2]>,
    bytes: usize,
    meter: CacheMeter,
}

/// Rows `[P, K * D]`, in the type in which they were computed.
#[derive(Debug, Clone, Default)]
enum Rows {
    #[default]
    None,
    F32(Box<[f32]>),
    BF16(Box<[bf16]>),
    #[cfg(feature = "cuda")]
    OnDevice(RowsOnDevice),
}

/// The same in the memory of a device. A clone is a copy; `None` where there was no memory for it.
#[cfg(feature = "cuda")]
#[derive(Debug)]
struct RowsOnDevice(Option<Tensor>);

#[cfg(feature = "cuda")]
impl Clone for RowsOnDevice {
    fn clone(&self) -> Self {
        Self(self.0.as_ref().and_then(|rows| rows.copy().ok()))
    }
}

#[cfg(feature = "cuda")]
impl RowsOnDevice {
    fn tensor(&self) -> Result<&Tensor> {
        let Some(rows) = &self.0 else {
            bail!(
                "{}: there was none for a copy of a page of keys and values",
                taper_kernels::cuda::OUT_OF_MEMORY
            )
        };
        Ok(rows)
    }
}

impl KvCache {
    /// An empty cache for a model of `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        Self::metered(blocks, &CacheMeter::default())
    }

    /// The same, its pages counted by `meter`.
    pub fn metered(blocks: usize, meter: &CacheMeter) -> Self {
        Self { pages: Vec::new(), tokens: vec![0; blocks], meter: meter.clone() }
    }

    /// A cache that begins with whole pages of another sequence.
    pub fn beginning_with(pages: Vec<Arc<KvPage>>, blocks: usize, meter: &CacheMeter) -> Self {
        Self { tokens: vec![pages.len() * PAGE_TOKENS; blocks], pages, meter: meter.clone() }
    }

    /// Tokens of block `index`.
    pub fn tokens(&self, index: usize) -> usize {
        self.tokens.get(index).copied().unwrap_or(0)
    }

    /// The pages, the last of them partly filled.
    pub fn pages(&self) -> &[Arc<KvPage>] {
        &self.pages
    }

    /// Forget all tokens behind the first `tokens`.
    pub fn truncate(&mut self, tokens: usize) {
        self.tokens.iter_mut().for_each(|held| *held = tokens.min(*held));
        self.pages.truncate(tokens.div_ceil(PAGE_TOKENS));
    }

    /// Append keys and values `[n, width]` of block `index`.
    pub(crate) fn append(
        &mut self,
        index: usize,
        keys: Floats<'_>,
        values: Floats<'_>,
        width: usize,
    ) -> Result<()> {
        let blocks = self.tokens.len();
        let Some(held) = self.tokens.get_mut(index) else { bail!("block {index} in a cache of {blocks}") };
        let new = keys.len() / width;
        let mut done = 0;
        while done < new {
            let (page, row) = (*held / PAGE_TOKENS, *held % PAGE_TOKENS);
            let here = (PAGE_TOKENS - row).min(new - done);
            if page == self.pages.len() {
                self.pages.push(Arc::new(KvPage::new(blocks, &self.meter)));
            }
            let page = Arc::make_mut(&mut self.pages[page]);
            page.write(index, (keys, values), done * width..(done + here) * width, row * width, width)?;
            done += here;
            *held += here;
        }
        Ok(())
    }

    /// The keys and values of block `index`, for attention.
    pub(crate) fn views(&self, index: usize) -> Vec<CachePage<'_>> {
        let used = self.tokens(index).div_ceil(PAGE_TOKENS);
        self.pages[..used].iter().map(|page| page.view(index)).collect()
    }
}

#[cfg(feature = "cuda")]
impl KvCache {
    /// [`Self::append`] of rows `rows` of keys and values that lie on a device.
    pub(crate) fn append_on(
        &mut self,
        place: &Place,
        index: usize,
        keys_and_values: [&Tensor; 2],
        rows: std::ops::Range<usize>,
        width: usize,
    ) -> Result<()> {
        let blocks = self.tokens.len();
        let Some(held) = self.tokens.get_mut(index) else { bail!("block {index} in a cache of {blocks}") };
        let mut next = rows.start;
        while next < rows.end {
            let (page, row) = (*held / PAGE_TOKENS, *held % PAGE_TOKENS);
            let here = (PAGE_TOKENS - row).min(rows.end - next);
            if page == self.pages.len() {
                self.pages.push(Arc::new(KvPage::new(blocks, &self.meter)));
            }
            let page = Arc::make_mut(&mut self.pages[page]);
            page.write_on(
                place,
                index,
                keys_and_values,
                next * width..(next + here) * width,
                row * width,
                width,
            )?;
            next += here;
            *held += here;
        }
        Ok(())
    }

    /// [`Self::views`] of pages that lie on a device.
    pub(crate) fn lent_on<'a>(&'a self, place: &'a Place, index: usize) -> Result<Vec<[GpuLent<'a>; 2]>> {
        let used = self.tokens(index).div_ceil(PAGE_TOKENS);
        let lent = |rows: &'a Rows| match rows {
            Rows::OnDevice(rows) => Ok(GpuLent::new(place, rows.tensor()?)),
            _ => bail!("a cache on the CPU for queries on a device"),
        };
        self.pages[..used]
            .iter()
            .map(|page| Ok([lent(&page.blocks[index][0])?, lent(&page.blocks[index][1])?]))
            .collect()
    }
}

#[cfg(feature = "cuda")]
impl KvPage {
    fn write_on(
        &mut self,
        place: &Place,
        index: usize,
        keys_and_values: [&Tensor; 2],
        from: std::ops::Range<usize>,
        at: usize,
        width: usize,
    ) -> Result<()> {
        for (rows, new) in self.blocks[index].iter_mut().zip(keys_and_values) {
            if matches!(rows, Rows::None) {
                let zeros = |rows: &mut SliceMut<'_>| elementwise::fill_zeros(place, rows).map_err(failed);
                *rows = Rows::OnDevice(RowsOnDevice(Some(place.filled(
                    new.dtype(),
                    (PAGE_TOKENS, width),
                    zeros,
                )?)));
                self.bytes += rows.bytes();
                self.meter.0.fetch_add(rows.bytes(), Ordering::Relaxed);
            }
            let Rows::OnDevice(held) = rows else {
                bail!("keys and values on a device behind some on the CPU")
            };
            let lent = GpuLent::new(place, new);
            let new = lent.slice()?.part(from.clone());
            crate::cuda::update(place, held.tensor()?, |rows| {
                elementwise::scale(place, new, 1.0, &mut rows.part(at..at + new.len())).map_err(failed)
            })?;
        }
        Ok(())
    }
}

impl KvPage {
    fn new(blocks: usize, meter: &CacheMeter) -> Self {
        let rows = (0..blocks).map(|_| [Rows::None, Rows::None]).collect();
        Self { blocks: rows, bytes: 0, meter: meter.clone() }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn write(
        &mut self,
        index: usize,
        (keys, values): (Floats<'_>, Floats<'_>),
        from: std::ops::Range<usize>,
        at: usize,
        width: usize,
    ) -> Result<()> {
        for (rows, new) in self.blocks[index].iter_mut().zip([keys, values]) {
            if matches!(rows, Rows::None) {
                *rows = Rows::zeros(new, PAGE_TOKENS * width);
                self.bytes += rows.bytes();
                self.meter.0.fetch_add(rows.bytes(), Ordering::Relaxed);
            }
            rows.write(new, from.clone(), at)?;
        }
        Ok(())
    }

    fn view(&self, index: usize) -> CachePage<'_> {
        let [k, v] = &self.blocks[index];
        CachePage { k: k.view(), v: v.view() }
    }
}

impl Clone for KvPage {
    fn clone(&self) -> Self {
        self.meter.0.fetch_add(self.bytes, Ordering::Relaxed);
        Self { blocks: self.blocks.clone(), bytes: self.bytes, meter: self.meter.clone() }
    }
}

impl Drop for KvPage {
    fn drop(&mut self) {
        self.meter.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Rows {
    fn zeros(like: Floats<'_>, len: usize) -> Self {
        match like {
            Floats::F32(_) => Self::F32(vec![0.0; len].into()),
            Floats::BF16(_) => Self::BF16(vec![bf16::ZERO; len].into()),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::F32(rows) => size_of_val::<[f32]>(rows),
            Self::BF16(rows) => size_of_val::<[bf16]>(rows),
            #[cfg(feature = "cuda")]
            Self::OnDevice(rows) => {
                rows.0.as_ref().map_or(0, |rows| rows.elem_count() * rows.dtype().size_in_bytes())
            }
        }
    }

    fn view(&self) -> Floats<'_> {
        match self {
            Self::None => Floats::F32(&[]),
            Self::F32(rows) => Floats::F32(rows),
            Self::BF16(rows) => Floats::BF16(rows),
            // Lent by `lent_on`.
            #[cfg(feature = "cuda")]
            Self::OnDevice(_) => Floats::F32(&[]),
        }
    }

    fn write(&mut self, new: Floats<'_>, from: std::ops::Range<usize>, at: usize) -> Result<()> {
        let to = at..at + from.len();
        match (self, new) {
            (Self::F32(rows), Floats::F32(new)) => rows[to].copy_from_slice(&new[from]),
            (Self::BF16(rows), Floats::BF16(new)) => rows[to].copy_from_slice(&new[from]),
            (Self::F32(rows), Floats::BF16(new)) => widen(&new[from], &mut rows[to]),
            _ => bail!("keys and values in f32 behind some in bf16"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 3;

    fn rows(first: usize, count: usize) -> Vec<f32> {
        (first * WIDTH..(first + count) * WIDTH).map(|i| i as f32).collect()
    }

    fn append(cache: &mut KvCache, first: usize, count: usize) {
        let (keys, values) = (rows(first, count), rows(first + 1000, count));
        for block in 0..2 {
            cache.append(block, Floats::F32(&keys), Floats::F32(&values), WIDTH).unwrap();
        }
    }

    fn keys(cache: &KvCache, block: usize) -> Vec<f32> {
        let held: Vec<f32> = cache
            .views(block)
            .iter()
            .flat_map(|page| match page.k {
                Floats::F32(keys) => keys.to_vec(),
                Floats::BF16(_) => panic!("written in f32"),
            })
            .collect();
        held[..cache.tokens(block) * WIDTH].to_vec()
    }

    #[test]
    fn rows_come_back_in_order_whatever_the_pieces() {
        for pieces in [[1, 31, 1, 40], [70, 1, 1, 1], [32, 32, 0, 9]] {
            let mut cache = KvCache::new(2);
            let mut at = 0;
            for piece in pieces {
                append(&mut cache, at, piece);
                at += piece;
            }
            assert_eq!((cache.tokens(1), cache.pages().len()), (at, at.div_ceil(PAGE_TOKENS)));
            assert_eq!(keys(&cache, 0), rows(0, at));
        }
    }

    #[test]
    fn who_writes_into_a_shared_page_copies_it_and_the_meter_counts_what_is_alive() {
        let meter = CacheMeter::default();
        let mut cache = KvCache::metered(2, &meter);
        append(&mut cache, 0, 40);
        let page = 2 * 2 * PAGE_TOKENS * WIDTH * 4;
        assert_eq!((meter.bytes(), cache.pages()[0].bytes()), (2 * page, page));
        let mut other = cache.clone();
        append(&mut other, 500, 1);
        append(&mut cache, 40, 1);
        assert_eq!(meter.bytes(), 3 * page, "the first page is shared, the second was copied");
        assert_eq!(keys(&cache, 1), rows(0, 41));
        assert_eq!(keys(&other, 1)[40 * WIDTH..], rows(500, 1));
        let whole = KvCache::beginning_with(cache.pages()[..1].to_vec(), 2, &meter);
        assert_eq!(keys(&whole, 0), rows(0, 32));
        cache.truncate(20);
        append(&mut cache, 20, 1);
        assert_eq!(keys(&cache, 0), rows(0, 21));
        assert_eq!(keys(&whole, 0), rows(0, 32), "what others hold stays");
        drop((cache, other, whole));
        assert_eq!(meter.bytes(), 0);
    }
}
