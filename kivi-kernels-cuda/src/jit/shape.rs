//! What the fast attention kernels are specialised on.

use kivi_kernels::DType;
use kivi_quant::{KvDtype, PageLayout, Side};

/// The layout of a cache, as kernels that are compiled for one layout know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    k_bits: usize,
    v_bits: usize,
    head_dim: usize,
    group_size: usize,
    page_tokens: usize,
    alibi: bool,
    /// Whether decode's kernel takes what is not all packed in the smallest tiles.
    small: bool,
}

/// Shared memory in bytes: what the blocks of a multiprocessor have together, and what one may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Of a multiprocessor.
    pub per_multiprocessor: usize,
    /// Of a block.
    pub per_block: usize,
}

/// How a kernel of a [`Shape`] is launched on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Warps of a block of decode's kernel.
    pub warps: usize,
    /// Tokens of a tile of decode's kernel.
    pub tile: usize,
    /// The same where all is packed.
    pub wide_tile: usize,
    /// What 16 rows in full precision cost there, in tiles.
    pub rows_cost: usize,
    /// Tiles that a warp of decode's kernel has in flight or in use.
    pub stages: usize,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// How prefill's kernel cuts its work.
    pub prefill: PrefillPlan,
}

/// Tiles of the kernel for many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PrefillPlan {
    /// Blocks that a multiprocessor holds at a time.
    pub blocks: usize,
    /// Warps of a block.
    pub warps: usize,
    /// Tiles of 16 rows of a warp.
    pub m_tiles: usize,
    /// Tokens of a tile.
    pub tile: usize,
    /// Tiles in flight or in use.
    pub stages: usize,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

impl PrefillPlan {
    /// Query rows of a block.
    pub fn rows(&self) -> usize {
        self.warps * 16 * self.m_tiles
    }
}

impl Limits {
    /// Those of an architecture, for compiling without a device.
    pub fn of(arch: &str) -> Self {
        let kib = match arch.trim_start_matches("sm_").trim_end_matches('a') {
            "80" => 164,
            "90" | "100" => 228,
            _ => 100,
        };
        Self { per_multiprocessor: kib << 10, per_block: (kib - 1) << 10 }
    }
}

/// Tokens of the smallest tile: rows of an operand.
const SMALL_TILE: usize = 16;

impl Shape {
    /// The shape of `layout`, if the fast kernels take it: rows of the type of activations, whole tiles of 16 channels.
    pub fn new(layout: &PageLayout, act: DType, alibi: bool) -> Option<Self> {
        let config = layout.config();
        let (dtype, head_dim) = (config.kv_dtype(), layout.head_dim());
        let same = matches!((dtype, act), (KvDtype::F16, DType::F16) | (KvDtype::Bf16, DType::Bf16));
        let tiles = head_dim.is_multiple_of(16) && head_dim % 64 != 48 && head_dim <= 256;
        (same && tiles).then(|| Self {
            k_bits: layout.bits(Side::Key).get() as usize,
            v_bits: layout.bits(Side::Value).get() as usize,
            head_dim,
            group_size: config.group_size(),
            page_tokens: config.page_tokens(),
            alibi,
            small: false,
        })
    }

    /// The same for few rows and units: more warps have some of what is not all packed, if it is taken in small tiles.
    pub fn small(self) -> Self {
        Self { small: self.usual_tile() > SMALL_TILE, ..self }
    }

    /// How to launch; none if a block cannot hold a single tile a warp.
    pub fn plan(&self, limits: Limits) -> Option<Plan> {
        // A block's own structures (`Shared` in span.cuh): each warp's region, for queries and sums, and spans.
        let region = (self.head_dim.max(64) * 16).max(self.head_dim.div_ceil(32) * 512);
        let (of_warp, tile) = (region + 192 + 176 * self.spans(), self.tile());
        // By their bytes.
        let rows_cost = ((64 * self.head_dim + self.stage_bytes(tile) / 2) / self.stage_bytes(tile)).max(1);
        let prefill = self.prefill(limits)?;
        let plan = |(warps, wide_tile, least): (usize, usize, usize)| {
            let stage = self.stage_bytes(wide_tile);
            let room = (limits.per_block & !127).saturating_sub(warps * of_warp);
            // More stages start with more waiting for memory than they save later.
            let stages = (room / (warps * stage)).min(3);
            let shared = (warps * (of_warp + stages * stage)).next_multiple_of(128);
            (stages >= least).then_some(Plan { warps, tile, wide_tile, rows_cost, stages, shared, prefill })
        };
        // With 12 warps a thread may have 168 registers; what 16 leave it is too few.
        let (wide, usual) = (self.wide_tile(), self.usual_tile());
        [(12, wide, 2), (12, usual, 2), (8, usual, 2), (4, usual, 1)].into_iter().find_map(plan)
    }

    /// The largest tiles that fit, as `Shared` in prefill.cu has them.
    fn prefill(&self, limits: Limits) -> Option<PrefillPlan> {
        // The sums of 32 rows of a longer head do not fit the registers of a warp.
        let m_tiles = if self.head_dim <= 128 { 2 } else { 1 };
        // While one block makes weights, another multiplies. Short of that, as many rows as can be to each tile.
        let pairs = [(2, 2, 64, 2), (2, 2, 64, 1)].into_iter().filter(|_| m_tiles == 2);
        let single = [(1, m_tiles, 64, 2), (1, m_tiles, 64, 1), (1, m_tiles, 32, 1), (1, 1, 32, 1)];
        let plan = |(blocks, m_tiles, tile, stages)| {
            let plan = PrefillPlan { blocks, warps: 8 / blocks, m_tiles, tile, stages, shared: 0 };
            let shared = 2 * (self.head_dim + 8) * (plan.rows() + 2 * stages * tile);
            PrefillPlan { shared, ..plan }
        };
        // The driver keeps a kilobyte of each block's.
        let fits = |plan: &PrefillPlan| {
            plan.shared <= (limits.per_multiprocessor / plan.blocks - 1024).min(limits.per_block)
        };
        pairs.chain(single).map(plan).find(fits)
    }

    fn has_codes(&self) -> bool {
        self.k_bits < 16 && self.v_bits < 16
    }

    /// Spans that are planned at a time for each warp of a team: the more, the seldomer copies run dry. Rows of 16 bits leave no
    /// room for more beside three stages.
    fn spans(&self) -> usize {
        if self.has_codes() { 8 } else { 4 }
    }

    fn tile(&self) -> usize {
        if self.small { SMALL_TILE } else { self.usual_tile() }
    }

    fn usual_tile(&self) -> usize {
        let few_bytes = self.has_codes() && self.head_dim * (self.k_bits + self.v_bits) <= 2048;
        if few_bytes { 2 * SMALL_TILE } else { SMALL_TILE }
    }

    /// Tokens of tiles that take fewer instructions a token, where they lie in one page and scales begin on lines of 128 bytes.
    fn wide_tile(&self) -> usize {
        let lines = self.head_dim.is_multiple_of(32) && self.page_tokens.is_multiple_of(64);
        if lines && self.usual_tile() == 32 { 64 } else { self.usual_tile() }
    }

    /// Bytes of a tile in shared memory: `STAGE_BYTES` in span.cuh.
    fn stage_bytes(&self, tile: usize) -> usize {
        let padded = |bytes: usize, pad: usize| bytes + bytes / 128 * pad;
        let side = |bits: usize, pad: usize, params: usize| {
            if bits < 16 {
                padded(tile * self.head_dim * bits / 8, pad) + params
            } else {
                tile * (self.head_dim + 8) * 2
            }
        };
        let groups = self.head_dim.div_ceil(self.group_size);
        side(self.k_bits, 0, padded(4 * self.head_dim * (tile / self.group_size).max(1), 16))
            + side(self.v_bits, 32, 4 * tile * groups)
    }

    /// The definitions that the sources read.
    pub fn defines(&self, plan: Plan) -> Vec<String> {
        let values = [
            ("K_BITS", self.k_bits),
            ("V_BITS", self.v_bits),
            ("HEAD_DIM", self.head_dim),
            ("GROUP_SIZE", self.group_size),
            ("PAGE_TOKENS", self.page_tokens),
            ("ALIBI", usize::from(self.alibi)),
            ("DECODE_WARPS", plan.warps),
            ("TILE", plan.tile),
            ("WIDE_TILE", plan.wide_tile),
            ("ROWS_COST", plan.rows_cost),
            ("STAGES", plan.stages),
            ("SPANS", self.spans()),
            ("SHARED", plan.shared),
            ("PREFILL_BLOCKS", plan.prefill.blocks),
            ("PREFILL_WARPS", plan.prefill.warps),
            ("PREFILL_M_TILES", plan.prefill.m_tiles),
            ("PREFILL_TILE", plan.prefill.tile),
            ("PREFILL_STAGES", plan.prefill.stages),
            ("PREFILL_SHARED", plan.prefill.shared),
        ];
        values.iter().map(|(name, value)| format!("-DKIVI_{name}={value}")).collect()
    }

    /// Shapes that together have every width, group size and head that is usual, on each side, in small tiles and others.
    pub fn covering() -> Vec<Self> {
        let bits = [(2, 2), (4, 4), (8, 8), (16, 16), (2, 4), (16, 2), (2, 16)];
        let of = |(k_bits, v_bits), head_dim, group_size, alibi| Self {
            k_bits,
            v_bits,
            head_dim,
            group_size,
            page_tokens: 128,
            alibi,
            small: false,
        };
        let mut shapes: Vec<Self> = bits.map(|bits| of(bits, 128, 32, false)).into();
        let heads = [(64, 64), (80, 32), (96, 128), (256, 32)].map(|(d, g)| of((2, 2), d, g, false));
        let others = [of((4, 2), 80, 64, true), of((8, 4), 96, 32, false), of((2, 2), 128, 128, true)];
        shapes.extend(heads.into_iter().chain(others).map(Self::small));
        shapes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_warps_as_shared_memory_keeps_busy() {
        let [narrow, .., wide] = [2, 4, 16].map(|bits| Shape {
            k_bits: bits,
            v_bits: bits,
            head_dim: 128,
            group_size: 32,
            page_tokens: 128,
            alibi: false,
            small: false,
        });
        let of = |shape: &Shape, arch| {
            let limits = Limits::of(arch);
            let plan = shape.plan(limits).expect("a plan");
            assert!(plan.shared <= limits.per_block, "{plan:?}");
            (plan.warps, plan.stages, plan.tile, plan.wide_tile)
        };
        assert_eq!(of(&narrow, "sm_90a"), (12, 2, 32, 64));
        assert_eq!(of(&narrow.small(), "sm_90a"), (12, 2, 16, 64));
        assert_eq!(of(&narrow, "sm_86"), (8, 2, 32, 32));
        assert_eq!(of(&wide, "sm_90a"), (8, 3, 16, 16));
        assert_eq!(of(&wide, "sm_86"), (4, 2, 16, 16));
        assert_eq!(wide.small(), wide);
        for shape in Shape::covering() {
            for arch in ["sm_80", "sm_86", "sm_90a"] {
                of(&shape, arch);
            }
        }
    }
}
