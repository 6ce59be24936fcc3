//! Words that the authors' code writes for `x[i] = f16((((37 i + 11) mod 101) - 50) / 16)`, `i < 128`, bit for bit.

use half::f16;
use kivi_quant::{Bits, linear, original};

/// Scales, zeros and packed words of all 128 elements in groups of `group_size`.
fn quantized(bits: Bits, group_size: usize) -> (Vec<f64>, Vec<f64>, Vec<u32>) {
    let x: Vec<f16> = (0..128).map(|i| f16::from_f32(((i * 37 + 11) % 101 - 50) as f32 / 16.0)).collect();
    let (mut scales, mut zeros, mut codes) = (Vec::new(), Vec::new(), vec![0; 128]);
    for (values, codes) in x.chunks(group_size).zip(codes.chunks_mut(group_size)) {
        let params = original::quantize(values, bits, codes);
        scales.push(params.scale.to_f64());
        zeros.push(params.zero.to_f64());
    }
    let mut words = vec![0; linear::words(codes.len(), bits)];
    linear::pack(&codes, bits, &mut words);
    let mut unpacked = vec![0; 128];
    linear::unpack(&words, bits, &mut unpacked);
    assert_eq!(unpacked, codes);
    (scales, zeros, words)
}

fn hex(words: &str) -> Vec<u32> {
    words.split(' ').map(|word| u32::from_str_radix(word, 16).unwrap()).collect()
}

#[test]
fn two_bits_groups_of_32() {
    let (scales, zeros, words) = quantized(Bits::B2, 32);
    assert_eq!(scales, [2.041015625, 2.021484375, 2.021484375, 2.021484375]);
    assert_eq!(zeros, [-3.125, -2.9375, -3.0, -3.0625]);
    assert_eq!(words, hex("9e249e74 49279927 79d249e7 249e7892 279d249e e249e789 9279d249 9e249e78"));
}

#[test]
fn two_bits_groups_of_64() {
    let (scales, zeros, words) = quantized(Bits::B2, 64);
    assert_eq!((scales, zeros), (vec![2.083984375, 2.041015625], vec![-3.125, -3.0625]));
    assert_eq!(words, hex("9e249e74 49279927 79e249e7 649e7892 279d249e e649e789 9279d249 9e249e78"));
}

#[test]
fn two_bits_groups_of_128() {
    let (scales, zeros, words) = quantized(Bits::B2, 128);
    assert_eq!((scales, zeros), (vec![2.083984375], vec![-3.125]));
    assert_eq!(words, hex("9e249e74 49279927 79e249e7 649e7892 279d249e e649e789 9279d249 9e649e78"));
}

#[test]
fn four_bits_groups_of_32() {
    let (scales, zeros, words) = quantized(Bits::B4, 32);
    assert_eq!(scales, [0.408447265625, 0.404052734375, 0.404052734375, 0.404052734375]);
    assert_eq!(zeros, [-3.125, -2.9375, -3.0, -3.0625]);
    let expected = "a5f93d72 94d82c61 83c71b5f 72b60a4e 60a4e83d 5f93d72b 4d82c60a 2c71b5f9 \
                    2b60a4e8 0a5f93d7 f94d82c6 e82c71b5 d72b60a4 c60a5f93 b5f94d82 a4e82c71";
    assert_eq!(words, hex(expected));
}

#[test]
fn four_bits_groups_of_128() {
    let (scales, zeros, words) = quantized(Bits::B4, 128);
    assert_eq!((scales, zeros), (vec![0.416748046875], vec![-3.125]));
    let expected = "a5e93d72 94d82c61 83c71b5f 72b60a4e 60a4e93d 5f93d82c 4e82c61a 3c71b5f9 \
                    2b60a4e8 1a5e93d7 f94d82c6 e83c71b5 d72b60a4 c61a5e93 b5f94d82 a4e83c71";
    assert_eq!(words, hex(expected));
}
