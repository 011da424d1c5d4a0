//! The entry of the fuzz targets (`scripts/fuzz`) into private modules.

use vmap_proxy_compiler::model::objects::Kind;

use super::{json, protobuf};

/// Reads everything of a body in chunks, up to the first error: a line for each event or item.
macro_rules! read_all {
    ($reader:expr, $body:expr, $size:expr, $end:expr) => {{
        let (mut reader, mut read) = ($reader, Vec::new());
        let mut is_malformed = false;
        for mut chunk in $body.chunks($size) {
            loop {
                match reader.next(&mut chunk) {
                    Ok(Some(one)) => read.push(format!("{one:?}")),
                    Ok(None) => break,
                    Err(_) => {
                        is_malformed = true;
                        break;
                    }
                }
            }
            if is_malformed {
                break;
            }
        }
        read.push(if is_malformed { "malformed".to_owned() } else { $end(&reader) });
        read
    }};
}

/// Reads bytes as the body of a watch and as that of a list, in JSON and in protobuf, in chunks of this size.
///
/// # Panics
///
/// If a body is read otherwise in one chunk.
pub fn read(body: &[u8], size: usize) {
    let whole = body.len().max(1);
    let watch = |size| {
        read_all!(json::WatchReader::new(Kind::Service), body, size, |r: &json::WatchReader| r
            .is_inside_event()
            .to_string())
    };
    assert_eq!(watch(size), watch(whole), "a watch in JSON depends on the chunks");
    let list = |size| {
        read_all!(json::ListReader::new(Kind::EndpointSlice), body, size, |r: &json::ListReader| format!(
            "{:?}",
            r.finish()
        ))
    };
    assert_eq!(list(size), list(whole), "a list in JSON depends on the chunks");
    let watch = |size| {
        read_all!(protobuf::WatchReader::new(Kind::Service), body, size, |r: &protobuf::WatchReader| {
            r.is_inside_event().to_string()
        })
    };
    assert_eq!(watch(size), watch(whole), "a watch in protobuf depends on the chunks");
    let list = |size| {
        read_all!(protobuf::ListReader::new(Kind::EndpointSlice), body, size, |r: &protobuf::ListReader| {
            format!("{:?}", r.finish())
        })
    };
    assert_eq!(list(size), list(whole), "a list in protobuf depends on the chunks");
}
