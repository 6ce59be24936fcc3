//! The header of a safetensors file, with messages that say what is wrong with it.
//!
//! The crate `safetensors` checks that the tensors fill the file without gap or overlap and that
//! every length fits shape and dtype. Its errors name neither file nor numbers; [`diagnose`] looks
//! for the cause once more.

use std::collections::HashMap;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError};
use serde_json::Value;

use super::{Entry, WeightDtype, as_text};
use crate::error::{LoadError, clean};
use crate::source::LFS_PREFIX;

/// The first bytes of a file: the length of the header, little-endian.
const PREFIX_BYTES: usize = 8;

/// Reads the header of a whole file; the ranges of the result are within `bytes`.
pub(super) fn parse(file: &str, bytes: &[u8], shard: usize) -> Result<HashMap<String, Entry>, LoadError> {
    check_length(file, bytes)?;
    let (header_len, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| diagnose(file, bytes, &error))?;
    let data_start = PREFIX_BYTES + header_len;
    entries(&metadata, data_start, shard)
        .map(|(name, entry)| match bytes.get(entry.bytes.clone()) {
            Some(_) => Ok((name, entry)),
            None => Err(invalid_tensor(file, &name, "lies outside the file".into())),
        })
        .collect()
}

fn entries(metadata: &Metadata, data_start: usize, shard: usize) -> impl Iterator<Item = (String, Entry)> {
    metadata.tensors().into_iter().map(move |(name, info)| {
        let (begin, end) = info.data_offsets;
        let entry = Entry {
            shard,
            dtype: dtype(info.dtype),
            dtype_name: format!("{:?}", info.dtype),
            shape: info.shape.clone(),
            bytes: data_start + begin..data_start + end,
        };
        (name, entry)
    })
}

fn dtype(dtype: Dtype) -> Option<WeightDtype> {
    match dtype {
        Dtype::F32 => Some(WeightDtype::F32),
        Dtype::F16 => Some(WeightDtype::F16),
        Dtype::BF16 => Some(WeightDtype::Bf16),
        _ => None,
    }
}

/// Checks the stated length of the header against the file before anything else is believed.
fn check_length(file: &str, bytes: &[u8]) -> Result<(), LoadError> {
    if bytes.starts_with(LFS_PREFIX) {
        return Err(LoadError::LfsPointer { file: file.into() });
    }
    let file_bytes = bytes.len() as u64;
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else {
        let expected_bytes = PREFIX_BYTES as u64;
        return Err(LoadError::Truncated { file: file.into(), expected_bytes, found_bytes: file_bytes });
    };
    let header_bytes = u64::from_le_bytes(*prefix);
    if header_bytes > file_bytes - PREFIX_BYTES as u64 {
        return Err(LoadError::HeaderTooLong { file: file.into(), header_bytes, file_bytes });
    }
    Ok(())
}

/// Turns an error of the crate into one that names tensor and numbers, if they can be found.
fn diagnose(file: &str, bytes: &[u8], error: &SafeTensorError) -> LoadError {
    let reason = match error {
        SafeTensorError::InvalidHeaderDeserialization(e) => format!("{} (column {})", reason(e), e.column()),
        other => clean(&other.to_string()),
    };
    let fallback = LoadError::InvalidHeader { file: file.into(), reason };
    let header_len = bytes.first_chunk().map_or(0, |prefix| u64::from_le_bytes(*prefix) as usize);
    let end = PREFIX_BYTES.saturating_add(header_len);
    let Some(header) = bytes.get(PREFIX_BYTES..end) else { return fallback };
    let Ok(Value::Object(tensors)) = serde_json::from_slice(header) else { return fallback };
    let found = (bytes.len() - end) as u64;
    first_fault(file, &tensors, end as u64, found).unwrap_or(fallback)
}

/// serde's reason without its position, which counts from the start of the header.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    clean(text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason))
}

/// The first tensor, in the order of the file, whose place is impossible.
fn first_fault(
    file: &str,
    tensors: &serde_json::Map<String, Value>,
    data_start: u64,
    data_bytes: u64,
) -> Option<LoadError> {
    let mut places = Vec::new();
    for (name, info) in tensors.iter().filter(|(name, _)| *name != "__metadata__") {
        match offsets(info) {
            Some((begin, end)) => places.push((begin, end, name)),
            None => {
                let found = as_text(info.get("data_offsets"));
                let reason = format!("data_offsets: expected two ascending numbers, found {found}");
                return Some(invalid_tensor(file, name, reason));
            }
        }
    }
    places.sort_unstable();
    let mut filled = 0;
    for (begin, end, name) in places {
        if begin != filled {
            let what =
                if begin < filled { "overlaps the tensor before it" } else { "leaves a gap before it" };
            let reason = format!("{what}: data_offsets begin at {begin}, expected {filled}");
            return Some(invalid_tensor(file, name, reason));
        }
        if let Some(reason) = wrong_size(&tensors[name], end - begin) {
            return Some(invalid_tensor(file, name, reason));
        }
        filled = end;
    }
    if data_bytes < filled {
        let (expected_bytes, found_bytes) = (data_start.saturating_add(filled), data_start + data_bytes);
        return Some(LoadError::Truncated { file: file.into(), expected_bytes, found_bytes });
    }
    let reason = format!("{} bytes follow the last tensor", data_bytes - filled);
    (data_bytes > filled).then(|| LoadError::InvalidHeader { file: file.into(), reason })
}

fn offsets(info: &Value) -> Option<(u64, u64)> {
    let [begin, end] = info.get("data_offsets")?.as_array()?.as_slice() else { return None };
    let (begin, end) = (begin.as_u64()?, end.as_u64()?);
    (begin <= end).then_some((begin, end))
}

/// Why a tensor cannot have this many bytes, if it cannot.
fn wrong_size(info: &Value, bytes: u64) -> Option<String> {
    let name = info.get("dtype");
    let Ok(dtype) = serde_json::from_value::<Dtype>(name.cloned().unwrap_or_default()) else {
        return Some(format!("dtype: expected one of safetensors' names, found {}", as_text(name)));
    };
    let shape = info.get("shape").and_then(Value::as_array);
    let count = shape.and_then(|dims| dims.iter().try_fold(1u64, |n, dim| n.checked_mul(dim.as_u64()?)));
    let Some(bits) = count.and_then(|n| n.checked_mul(dtype.bitsize() as u64)) else {
        return Some("shape: expected a list of numbers with a product that fits".into());
    };
    let wrong = bits != bytes.saturating_mul(8);
    wrong.then(|| format!("expected {} bytes for shape and dtype, found {bytes}", bits.div_ceil(8)))
}

fn invalid_tensor(file: &str, tensor: &str, reason: String) -> LoadError {
    LoadError::InvalidTensor { file: file.into(), tensor: clean(tensor), reason }
}
