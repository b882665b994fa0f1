//! GGUF files of a test's own making, as llama.cpp's converter lays them out.

/// A GGUF file in the making: keys and tensors in the order they were given.
#[derive(Debug, Clone)]
pub struct GgufFile {
    version: u32,
    alignment: usize,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
}

#[derive(Debug, Clone)]
struct Tensor {
    name: String,
    type_id: u32,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Default for GgufFile {
    fn default() -> Self {
        Self { version: 3, alignment: 32, keys: Vec::new(), tensors: Vec::new() }
    }
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;

impl GgufFile {
    /// An empty file of version 3.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same file of another version.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// The same file with tensors at multiples of `alignment` bytes, and a key that says so.
    pub fn alignment(mut self, alignment: u32) -> Self {
        self.alignment = alignment as usize;
        self.u32("general.alignment", alignment)
    }

    /// A key whose value is given as it lies in the file: the number of its type, its bytes.
    pub fn value(mut self, key: &str, type_id: u32, value: &[u8]) -> Self {
        self.keys.push([&text(key)[..], &type_id.to_le_bytes(), value].concat());
        self
    }

    /// A key with a whole number.
    pub fn u32(self, key: &str, value: u32) -> Self {
        self.value(key, 4, &value.to_le_bytes())
    }

    /// A key with a number.
    pub fn f32(self, key: &str, value: f32) -> Self {
        self.value(key, 6, &value.to_le_bytes())
    }

    /// A key with a truth value.
    pub fn flag(self, key: &str, value: bool) -> Self {
        self.value(key, 7, &[u8::from(value)])
    }

    /// A key with a text.
    pub fn text(self, key: &str, value: &str) -> Self {
        self.value(key, TEXT, &text(value))
    }

    /// A key with texts.
    pub fn texts<T: AsRef<str>>(self, key: &str, values: &[T]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| text(value.as_ref())).collect();
        self.array(key, TEXT, values.len(), &bytes)
    }

    /// A key with whole numbers of 32 bits.
    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, 5, values.len(), &bytes)
    }

    /// A key with numbers of single precision.
    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, 6, values.len(), &bytes)
    }

    /// A key with truth values.
    pub fn flags(self, key: &str, values: &[bool]) -> Self {
        let bytes: Vec<u8> = values.iter().map(|value| u8::from(*value)).collect();
        self.array(key, 7, values.len(), &bytes)
    }

    fn array(self, key: &str, type_id: u32, count: usize, bytes: &[u8]) -> Self {
        let head = [&type_id.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        self.value(key, ARRAY, &[&head[..], bytes].concat())
    }

    /// A tensor: GGML's number of its type, its row-major shape, its bytes.
    pub fn tensor(mut self, name: &str, type_id: u32, shape: &[usize], bytes: &[u8]) -> Self {
        self.tensors.push(Tensor { name: name.into(), type_id, shape: shape.into(), bytes: bytes.into() });
        self
    }

    /// A tensor of single precision, all zeros.
    pub fn zeros(self, name: &str, shape: &[usize]) -> Self {
        let elements: usize = shape.iter().product();
        self.tensor(name, 0, shape, &vec![0; 4 * elements])
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        file.extend(self.keys.iter().flatten());
        let mut data = Vec::new();
        for tensor in &self.tensors {
            file.extend(text(&tensor.name));
            file.extend((tensor.shape.len() as u32).to_le_bytes());
            file.extend(tensor.shape.iter().rev().flat_map(|size| (*size as u64).to_le_bytes()));
            file.extend(tensor.type_id.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            pad(&mut data, self.alignment);
        }
        pad(&mut file, self.alignment);
        file.extend(data);
        file
    }
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

fn pad(bytes: &mut Vec<u8>, alignment: usize) {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
}
