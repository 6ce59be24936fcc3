//! Where everything lies in a page. `docs/format.md` draws it; this file is the only code that knows it.

use crate::{Bits, ConfigError, KiviConfig, KvDtype};

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Keys: quantized per channel.
    Key,
    /// Values: quantized per token.
    Value,
}

/// Position of a code, or of a scale or a zero (of 16 bits): bits `shift .. shift + bits` of word `word` of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodeAt {
    /// Word of the page.
    pub word: usize,
    /// Lowest bit.
    pub shift: u32,
}

/// Layout of one page of one KV head: one contiguous record of 32-bit words,
/// `key codes | key scales and zeros | value codes | value scales and zeros`, each part a multiple of 16 bytes.
///
/// At 16 bits a part "codes" holds the rows themselves and the part of scales is empty.
///
/// The order of codes is made for `mma.m16n8k16` with the cache as the 16-row operand: masking a word with
/// `(2^bits - 1) * 0x0001_0001 << (bits * j)` yields two codes that the contraction adds up together, two
/// channels of one token for keys, one channel of two tokens for values. A word of scales, or of zeros, holds those
/// of the same two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageLayout {
    config: KiviConfig,
    head_dim: usize,
}

impl PageLayout {
    /// Layout of the pages of `config` for heads of `head_dim` channels.
    ///
    /// # Errors
    /// [`ConfigError::HeadDim`] unless `head_dim` is a multiple of 16 (without quantization: of 2) up to 512.
    pub fn new(config: KiviConfig, head_dim: usize) -> Result<Self, ConfigError> {
        let multiple = if config.is_quantized() { 16 } else { 2 };
        if head_dim == 0 || !head_dim.is_multiple_of(multiple) || head_dim > 512 {
            return Err(ConfigError::HeadDim { head_dim, multiple });
        }
        Ok(Self { config, head_dim })
    }

    /// The cache settings.
    pub fn config(&self) -> &KiviConfig {
        &self.config
    }

    /// Channels of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Width of the codes of `side`.
    pub fn bits(&self, side: Side) -> Bits {
        match side {
            Side::Key => self.config.k_bits(),
            Side::Value => self.config.v_bits(),
        }
    }

    /// Words of one row in the cache's [`KvDtype`]: of a residual ring, of a sink, of a 16-bit page.
    pub fn row_words(&self) -> usize {
        self.head_dim * self.config.kv_dtype().bytes() / 4
    }

    /// Words of the codes of one token.
    pub fn token_words(&self, side: Side) -> usize {
        match self.bits(side) {
            Bits::B16 => self.row_words(),
            bits => self.head_dim * bits.get() as usize / 32,
        }
    }

    /// Groups of one token's values: `ceil(head_dim / group_size)`; the last may be shorter.
    pub fn value_groups(&self) -> usize {
        self.head_dim.div_ceil(self.config.group_size())
    }

    /// Words of the part of `side` that holds scales and zeros.
    pub fn params_words(&self, side: Side) -> usize {
        let tokens = self.config.page_tokens();
        match side {
            _ if !self.bits(side).is_quantized() => 0,
            Side::Key => tokens / self.config.group_size() * self.head_dim,
            Side::Value => tokens * self.value_groups(),
        }
    }

    /// First word of the codes of `side`.
    pub fn codes_start(&self, side: Side) -> usize {
        match side {
            Side::Key => 0,
            Side::Value => self.params_start(Side::Key) + self.params_words(Side::Key),
        }
    }

    /// First word of the scales and zeros of `side`.
    pub fn params_start(&self, side: Side) -> usize {
        self.codes_start(side) + self.config.page_tokens() * self.token_words(side)
    }

    /// Words of a page.
    pub fn page_words(&self) -> usize {
        self.params_start(Side::Value) + self.params_words(Side::Value)
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        4 * self.page_words()
    }

    /// Where the code of `channel` of the page's token `token` is.
    pub fn code(&self, side: Side, token: usize, channel: usize) -> CodeAt {
        let bits = self.bits(side).get() as usize;
        let position = self.position(side, channel);
        match side {
            // [token][word]: position 2j + h of a word is field j of its half h.
            Side::Key => {
                let per_word = 32 / bits;
                let within = position % per_word;
                let word = self.codes_start(side) + token * self.token_words(side) + position / per_word;
                CodeAt { word, shift: (16 * (within % 2) + within / 2 * bits) as u32 }
            }
            // [token / 2][unit]: a 16-bit unit of each of two tokens makes a word.
            Side::Value => {
                let per_unit = 16 / bits;
                let pair = token / 2 * 2 * self.token_words(side);
                let word = self.codes_start(side) + pair + position / per_unit;
                CodeAt { word, shift: (16 * (token % 2) + position % per_unit * bits) as u32 }
            }
        }
    }

    /// The place of `channel` in the order in which a token's codes are stored.
    ///
    /// Keys: the channels in their order. Values: in blocks of 64 channels, lane `g` of 8 owns channels
    /// `16 i + 2 g + h` (`i` the 16-channel tile, `h` 0 or 1) and its 8 codes `2 i + h` lie together, the
    /// blocks of one lane side by side; what is left of the head (16, 32 or 48 channels) follows likewise.
    pub fn position(&self, side: Side, channel: usize) -> usize {
        if side == Side::Key {
            return channel;
        }
        let blocks = self.head_dim / 64;
        let (block, within) = (channel / 64, channel % 64);
        let (tile, lane, half) = (within / 16, within % 16 / 2, within % 2);
        if block < blocks {
            return (lane * blocks + block) * 8 + 2 * tile + half;
        }
        64 * blocks + lane * (self.head_dim % 64 / 8) + 2 * tile + half
    }

    /// Where the scale (f16) of `channel` of the page's token `token` is.
    pub fn scale(&self, side: Side, token: usize, channel: usize) -> CodeAt {
        let group_size = self.config.group_size();
        let (word, half) = match side {
            // [token / group_size][channel / 2][scales, zeros]: two channels to a word.
            Side::Key => (token / group_size * self.head_dim + channel / 2 * 2, channel % 2),
            // [token / 2][scales, zeros][group]: two tokens to a word.
            Side::Value => (token / 2 * 2 * self.value_groups() + channel / group_size, token % 2),
        };
        CodeAt { word: self.params_start(side) + word, shift: 16 * half as u32 }
    }

    /// Where the zero (f16) of `channel` of the page's token `token` is.
    pub fn zero(&self, side: Side, token: usize, channel: usize) -> CodeAt {
        let CodeAt { word, shift } = self.scale(side, token, channel);
        let scales = if side == Side::Key { 1 } else { self.value_groups() };
        CodeAt { word: word + scales, shift }
    }

    /// First word of a row of a 16-bit page.
    pub fn row_start(&self, side: Side, token: usize) -> usize {
        self.codes_start(side) + token * self.row_words()
    }

    /// Type of full-precision rows.
    pub fn kv_dtype(&self) -> KvDtype {
        self.config.kv_dtype()
    }
}
