//! Validated settings of a cache, and the packing schedule that follows from them.

use core::fmt;

/// Width of one stored code. [`Bits::B16`] means "not quantized": rows are stored as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bits {
    /// Codes 0..=3.
    B2,
    /// Codes 0..=15.
    B4,
    /// Codes 0..=255.
    B8,
    /// Rows in the cache's [`KvDtype`], no scale, no zero, no residual window.
    B16,
}

impl Bits {
    /// Every width, narrowest first.
    pub const ALL: [Self; 4] = [Self::B2, Self::B4, Self::B8, Self::B16];

    /// The number of bits of a code: 2, 4, 8 or 16.
    pub const fn get(self) -> u32 {
        match self {
            Self::B2 => 2,
            Self::B4 => 4,
            Self::B8 => 8,
            Self::B16 => 16,
        }
    }

    /// The largest code, `2^bits - 1`; only meaningful below 16 bits.
    pub const fn max_code(self) -> u32 {
        (1 << self.get()) - 1
    }

    /// Whether rows of this width carry codes, scales and zeros.
    pub const fn is_quantized(self) -> bool {
        !matches!(self, Self::B16)
    }
}

impl TryFrom<u32> for Bits {
    type Error = ConfigError;

    fn try_from(bits: u32) -> Result<Self, ConfigError> {
        Self::ALL.into_iter().find(|b| b.get() == bits).ok_or(ConfigError::Bits(bits))
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// Number of elements that share one scale and zero: 32, 64 or 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupSize(u16);

impl GroupSize {
    /// The group size of the paper's experiments, 32.
    pub const G32: Self = Self(32);
    /// 64 elements.
    pub const G64: Self = Self(64);
    /// 128 elements.
    pub const G128: Self = Self(128);
    /// Every group size, smallest first.
    pub const ALL: [Self; 3] = [Self::G32, Self::G64, Self::G128];

    /// The number of elements.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl TryFrom<usize> for GroupSize {
    type Error = ConfigError;

    fn try_from(size: usize) -> Result<Self, ConfigError> {
        Self::ALL.into_iter().find(|g| g.get() == size).ok_or(ConfigError::GroupSize(size))
    }
}

/// Type of the rows that are kept in full precision: the residual window, sinks and 16-bit pages.
///
/// K (after RoPE) and V rows are rounded to it once, before anything reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE binary32, for parity tests on the CPU.
    F32,
}

impl KvDtype {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::F16, Self::Bf16, Self::F32];

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// `x` rounded to this type, to nearest, ties to even.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F16 => half::f16::from_f32(x).to_f32(),
            Self::Bf16 => half::bf16::from_f32(x).to_f32(),
            Self::F32 => x,
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

/// How many tokens of a sequence are packed; the others are in full precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Tokens `[0, k)` have packed keys.
    pub k: usize,
    /// Tokens `[0, v)` have packed values.
    pub v: usize,
}

/// Settings of a KIVI cache. A value of this type is valid: every constructor checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KiviConfig {
    k_bits: Bits,
    v_bits: Bits,
    group_size: GroupSize,
    residual_length: usize,
    page_tokens: usize,
    kv_dtype: KvDtype,
    sink_tokens: usize,
}

impl KiviConfig {
    /// Default tokens of a page.
    pub const DEFAULT_PAGE_TOKENS: usize = 128;
    /// Longest residual window that is accepted.
    pub const MAX_RESIDUAL: usize = 1 << 16;

    /// A cache with `k_bits` keys and `v_bits` values, `group_size` elements to a scale, and the last
    /// `residual_length` tokens in full precision; pages of 128 tokens, f16 rows, no sinks.
    ///
    /// # Errors
    /// [`ConfigError::Residual`] unless `residual_length` is a positive multiple of `group_size`.
    pub fn new(
        k_bits: Bits,
        v_bits: Bits,
        group_size: GroupSize,
        residual_length: usize,
    ) -> Result<Self, ConfigError> {
        let group = group_size.get();
        if residual_length == 0
            || !residual_length.is_multiple_of(group)
            || residual_length > Self::MAX_RESIDUAL
        {
            return Err(ConfigError::Residual { residual_length, group_size: group });
        }
        Ok(Self {
            k_bits,
            v_bits,
            group_size,
            residual_length,
            page_tokens: Self::DEFAULT_PAGE_TOKENS,
            kv_dtype: KvDtype::F16,
            sink_tokens: 0,
        })
    }

    /// The same cache with codes of other widths.
    #[must_use]
    pub fn with_bits(self, k_bits: Bits, v_bits: Bits) -> Self {
        Self { k_bits, v_bits, ..self }
    }

    /// The same cache with full-precision rows of another type.
    #[must_use]
    pub fn with_kv_dtype(self, kv_dtype: KvDtype) -> Self {
        Self { kv_dtype, ..self }
    }

    /// The same cache with pages of `page_tokens` tokens.
    ///
    /// # Errors
    /// [`ConfigError::PageTokens`] unless it is a positive multiple of the group size up to
    /// [`Self::MAX_RESIDUAL`].
    pub fn with_page_tokens(self, page_tokens: usize) -> Result<Self, ConfigError> {
        let group_size = self.group_size.get();
        if page_tokens == 0 || !page_tokens.is_multiple_of(group_size) || page_tokens > Self::MAX_RESIDUAL {
            return Err(ConfigError::PageTokens { page_tokens, group_size });
        }
        Ok(Self { page_tokens, ..self })
    }

    /// The same cache with the first `sink_tokens` tokens of each sequence kept in full precision (off, 0, in
    /// the paper).
    ///
    /// # Errors
    /// [`ConfigError::Sinks`] above [`Self::MAX_RESIDUAL`].
    pub fn with_sink_tokens(self, sink_tokens: usize) -> Result<Self, ConfigError> {
        if sink_tokens > Self::MAX_RESIDUAL {
            return Err(ConfigError::Sinks(sink_tokens));
        }
        Ok(Self { sink_tokens, ..self })
    }

    /// Width of key codes.
    pub fn k_bits(&self) -> Bits {
        self.k_bits
    }

    /// Width of value codes.
    pub fn v_bits(&self) -> Bits {
        self.v_bits
    }

    /// Elements that share a scale and a zero.
    pub fn group_size(&self) -> usize {
        self.group_size.get()
    }

    /// Length of the residual window, in tokens (R in the paper).
    pub fn residual_length(&self) -> usize {
        self.residual_length
    }

    /// Tokens of a page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Type of full-precision rows.
    pub fn kv_dtype(&self) -> KvDtype {
        self.kv_dtype
    }

    /// Tokens at the start of a sequence that stay in full precision.
    pub fn sink_tokens(&self) -> usize {
        self.sink_tokens
    }

    /// Whether keys or values are quantized at all.
    pub fn is_quantized(&self) -> bool {
        self.k_bits.is_quantized() || self.v_bits.is_quantized()
    }

    /// Which tokens are packed when the cache holds `len` tokens.
    ///
    /// # Equation
    /// Keys `R * floor(len / R)`, values `max(0, len - R)` with `R = residual_length` (the state that the
    /// authors' code is in after any split of `len` tokens into a prompt and single steps); all `len` tokens at
    /// 16 bits, where rows go to pages at once.
    pub fn packed(&self, len: usize) -> Packed {
        let r = self.residual_length;
        Packed {
            k: if self.k_bits.is_quantized() { len - len % r } else { len },
            v: if self.v_bits.is_quantized() { len.saturating_sub(r) } else { len },
        }
    }

    /// Pages that a sequence of `len` tokens needs.
    pub fn pages(&self, len: usize) -> usize {
        let packed = self.packed(len);
        packed.k.max(packed.v).div_ceil(self.page_tokens)
    }

    /// Pages that a sequence of `len` tokens needs no more in a layer where a token sees `window` tokens, itself included: no
    /// further token sees them, and all of them is packed.
    pub fn pages_left(&self, window: usize, len: usize) -> usize {
        let packed = self.packed(len);
        (len + 1).saturating_sub(window).min(packed.k).min(packed.v) / self.page_tokens
    }

    /// Rows of the residual ring of a sequence for keys and for values (0 at 16 bits).
    pub fn ring_rows(&self) -> Packed {
        let rows = |bits: Bits| if bits.is_quantized() { self.residual_length } else { 0 };
        Packed { k: rows(self.k_bits), v: rows(self.v_bits) }
    }
}

impl fmt::Display for KiviConfig {
    /// `K2 V2 g32 R128`, or `K16 V16`; the type of full-precision rows unless it is f16, sinks if there are any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "K{} V{}", self.k_bits, self.v_bits)?;
        if self.is_quantized() {
            write!(f, " g{} R{}", self.group_size(), self.residual_length)?;
        }
        if self.kv_dtype != KvDtype::F16 {
            write!(f, " {}", self.kv_dtype)?;
        }
        if self.sink_tokens > 0 { write!(f, " sink {}", self.sink_tokens) } else { Ok(()) }
    }
}

/// A setting that the cache does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A width that is not stored.
    #[error("cache bits: expected 2, 4, 8 or 16, found {0}")]
    Bits(u32),
    /// A group size that no kernel has.
    #[error("cache group size: expected 32, 64 or 128, found {0}")]
    GroupSize(usize),
    /// A residual length that groups do not divide.
    #[error(
        "cache residual length: expected a multiple of the group size {group_size} from {group_size} to {max}, found {residual_length}",
        max = KiviConfig::MAX_RESIDUAL
    )]
    Residual {
        /// What was asked for.
        residual_length: usize,
        /// The group size in force.
        group_size: usize,
    },
    /// A page that groups do not divide.
    #[error(
        "cache page: expected a multiple of the group size {group_size} from {group_size} to {max}, found {page_tokens} tokens",
        max = KiviConfig::MAX_RESIDUAL
    )]
    PageTokens {
        /// What was asked for.
        page_tokens: usize,
        /// The group size in force.
        group_size: usize,
    },
    /// More sinks than a sequence may have.
    #[error("cache sinks: expected at most {max}, found {0}", max = KiviConfig::MAX_RESIDUAL)]
    Sinks(usize),
    /// A head that the page layout cannot hold.
    #[error("cache head_dim: expected a multiple of {multiple} up to 512, found {head_dim}")]
    HeadDim {
        /// Channels of a head.
        head_dim: usize,
        /// What they must be a multiple of.
        multiple: usize,
    },
}
