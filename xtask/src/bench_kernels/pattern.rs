//! Contents of caches: a few packed pages and rows, repeated over the device's memory, and what they hold.

use kivi_kernels::Element;
use kivi_kernels_ref::conformance::Rng;
use kivi_quant::{PageLayout, Side, page};

use super::shape::HEAD_DIM;

/// Packed pages of one head; prime, so that no number of heads repeats them in step.
const RECORDS: usize = 61;
/// Rows of a ring, likewise.
const RING_ROWS: usize = 1021;
/// Rows of activations, likewise.
const ACT_ROWS: usize = 8191;

fn at(side: Side) -> usize {
    usize::from(side == Side::Value)
}

/// Random cache contents of one layout.
pub struct Pattern {
    pub layout: PageLayout,
    /// Whole pages of one head each.
    pub pages: Vec<u32>,
    /// Rows in full precision, keys and values.
    pub rings: [Vec<u32>; 2],
    /// What `pages` and `rings` hold, `[row][HEAD_DIM]`.
    page_rows: [Vec<f32>; 2],
    ring_rows: [Vec<f32>; 2],
}

impl Pattern {
    pub fn new(layout: PageLayout) -> Self {
        let mut rng = Rng::new(1);
        let mut pages = vec![0; RECORDS * layout.page_words()];
        for page in pages.chunks_mut(layout.page_words()) {
            pack(&layout, page, &mut rng);
        }
        let page_rows = [Side::Key, Side::Value].map(|side| unpack(&layout, side, &pages));
        let rings = [0, 1].map(|_| ring(&layout, &mut rng));
        let ring_rows = [0, 1].map(|side: usize| {
            let mut rows = vec![0.0; RING_ROWS * HEAD_DIM];
            let words = rings[side].chunks(layout.row_words());
            words
                .zip(rows.chunks_mut(HEAD_DIM))
                .for_each(|(words, row)| page::load_row(layout.kv_dtype(), words, row));
            rows
        });
        Self { layout, pages, rings, page_rows, ring_rows }
    }

    /// Token `token` of the `record`-th page of one head in the pool.
    pub fn page_row(&self, side: Side, record: usize, token: usize) -> &[f32] {
        let row = record % RECORDS * self.layout.config().page_tokens() + token;
        &self.page_rows[at(side)][row * HEAD_DIM..][..HEAD_DIM]
    }

    /// Row `row` of a ring, counted through all sequences and heads.
    pub fn ring_row(&self, side: Side, row: usize) -> &[f32] {
        &self.ring_rows[at(side)][row % RING_ROWS * HEAD_DIM..][..HEAD_DIM]
    }
}

#[cfg(test)]
impl Pattern {
    /// Says that each page is where another is.
    pub fn shift_pages(&mut self) {
        let tokens = self.layout.config().page_tokens();
        self.page_rows.iter_mut().for_each(|rows| rows.rotate_left(tokens * HEAD_DIM));
    }

    /// Says that each row of the rings is where another is.
    pub fn shift_rings(&mut self) {
        self.ring_rows.iter_mut().for_each(|rows| rows.rotate_left(HEAD_DIM));
    }
}

fn normals(n: usize, rng: &mut Rng) -> Vec<f32> {
    rng.normals(n, |x| x).into_iter().map(|x| x as f32).collect()
}

/// Fills a page with random rows.
fn pack(layout: &PageLayout, page: &mut [u32], rng: &mut Rng) {
    let config = layout.config();
    let (tokens, group) = (config.page_tokens(), config.group_size());
    for side in [Side::Key, Side::Value] {
        let rows = normals(tokens * HEAD_DIM, rng);
        let row = |t: usize| &rows[t * HEAD_DIM..][..HEAD_DIM];
        for t in 0..tokens {
            match side {
                _ if !layout.bits(side).is_quantized() => page::put_row(layout, side, page, t, row(t)),
                Side::Key if t % group == 0 => {
                    page::pack_keys(layout, page, t, &rows[t * HEAD_DIM..][..group * HEAD_DIM], 0);
                }
                Side::Key => {}
                Side::Value => page::pack_value(layout, page, t, row(t)),
            }
        }
    }
}

fn unpack(layout: &PageLayout, side: Side, pages: &[u32]) -> Vec<f32> {
    let tokens = layout.config().page_tokens();
    let mut rows = vec![0.0; RECORDS * tokens * HEAD_DIM];
    for (i, row) in rows.chunks_mut(HEAD_DIM).enumerate() {
        let page = &pages[i / tokens * layout.page_words()..][..layout.page_words()];
        page::read_row(layout, side, page, i % tokens, row);
    }
    rows
}

fn ring(layout: &PageLayout, rng: &mut Rng) -> Vec<u32> {
    let mut words = vec![0; RING_ROWS * layout.row_words()];
    for row in words.chunks_mut(layout.row_words()) {
        page::store_row(layout.kv_dtype(), &normals(HEAD_DIM, rng), row);
    }
    words
}

/// Random activations: queries, keys, values, `[row][HEAD_DIM]`, to be repeated.
pub struct Inputs<T>(pub [Vec<T>; 3]);

impl<T: Element> Inputs<T> {
    pub fn new() -> Self {
        let mut rng = Rng::new(2);
        Self([0, 1, 2].map(|_| (0..ACT_ROWS * HEAD_DIM).map(|_| T::from_f64(rng.normal())).collect()))
    }

    /// A head's row, counted through all rows and heads, of queries (0), keys (1) or values (2).
    pub fn row(&self, which: usize, row: usize) -> impl Iterator<Item = f64> {
        self.0[which][row % ACT_ROWS * HEAD_DIM..][..HEAD_DIM].iter().map(|x| x.to_f64())
    }
}
