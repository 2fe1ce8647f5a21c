// The sentence encoder: a small transformer over int8 weights, computed as CTranslate2 computes it.

const EPSILON = 1e-12;

export class Encoder {
  /** tensors: name → typed array, as in CTranslate2's model.bin; shapes: name → dimensions. */
  constructor(tensors, shapes) {
    this.tensors = tensors;
    this.width = shapes["embeddings_0/weight"][1];
    this.heads = Number(tensors.num_heads[0]);
    this.layers = [];
    for (let n = 0; tensors[`layer_${n}/ffn/linear_0/weight`]; n++) this.layers.push(`layer_${n}`);
  }

  /** (tokens × width): the states of a text's tokens. */
  states(ids) {
    const { tensors, width } = this, count = ids.length;
    let states = new Float32Array(count * width);
    const [pieces, scales, types] = ["embeddings_0/weight", "embeddings_0/weight_scale", "embeddings_1/weight"].map((name) => tensors[name]);
    const typeScale = tensors["embeddings_1/weight_scale"][0], positions = tensors["position_encodings/encodings"];
    ids.forEach((id, row) => {
      for (let column = 0; column < width; column++) {
        states[row * width + column] = pieces[id * width + column] / scales[id] + types[column] / typeScale + positions[row * width + column];
      }
    });
    this.normalize(states, "layernorm_embedding");
    for (const layer of this.layers) {
      states = this.added(states, this.attention(states, count, `${layer}/self_attention`), `${layer}/self_attention/layer_norm`);
      const inner = this.linear(states, count, `${layer}/ffn/linear_0`).map(gelu);
      states = this.added(states, this.linear(inner, count, `${layer}/ffn/linear_1`), `${layer}/ffn/layer_norm`);
    }
    return states;
  }

  /** A text's vector, and those of its tokens, all of length 1. */
  encode(ids) {
    const states = this.states(ids), { width } = this, vector = new Float32Array(width);
    for (let place = 0; place < states.length; place++) vector[place % width] += states[place];
    unit(vector, width);
    unit(states, width);
    return { vector, tokens: states };
  }

  attention(states, count, name) {
    const { width, heads } = this, size = width / heads, scale = 1 / Math.sqrt(size);
    const projected = this.linear(states, count, `${name}/linear_0`), context = new Float32Array(count * width);
    const scores = new Float32Array(count);
    for (let head = 0; head < heads; head++) {
      for (let row = 0; row < count; row++) {
        const query = row * 3 * width + head * size;
        for (let other = 0; other < count; other++) {
          const key = other * 3 * width + width + head * size;
          let sum = 0;
          for (let n = 0; n < size; n++) sum += projected[query + n] * projected[key + n];
          scores[other] = sum * scale;
        }
        softmax(scores);
        for (let other = 0; other < count; other++) {
          const value = other * 3 * width + 2 * width + head * size, share = scores[other];
          for (let n = 0; n < size; n++) context[row * width + head * size + n] += share * projected[value + n];
        }
      }
    }
    return this.linear(context, count, `${name}/linear_1`);
  }

  /** Inputs are rounded to int8, each row by its largest value; the products are exact. */
  linear(inputs, count, name) {
    const weight = this.tensors[`${name}/weight`], scales = this.tensors[`${name}/weight_scale`], bias = this.tensors[`${name}/bias`];
    const outputs = bias.length, width = weight.length / outputs, { rows, factors } = rounded(inputs, count, width);
    const found = new Float32Array(count * outputs), sums = new Int32Array(8);
    for (let n = 0; n < count; n += 4) {
      for (let output = 0; output < outputs; output += 2) {
        multiply(rows, n * width, weight, output * width, width, sums);
        for (let row = 0; row < Math.min(4, count - n); row++) {
          for (let k = 0; k < 2; k++) {
            found[(n + row) * outputs + output + k] = sums[2 * row + k] / (factors[n + row] * scales[output + k]) + bias[output + k];
          }
        }
      }
    }
    return found;
  }

  added(states, more, name) {
    for (let place = 0; place < states.length; place++) more[place] += states[place];
    return this.normalize(more, name);
  }

  normalize(states, name) {
    const gamma = this.tensors[`${name}/gamma`], beta = this.tensors[`${name}/beta`], { width } = this;
    for (let start = 0; start < states.length; start += width) {
      let mean = 0, variance = 0;
      for (let n = 0; n < width; n++) mean += states[start + n];
      mean /= width;
      for (let n = 0; n < width; n++) variance += (states[start + n] - mean) ** 2;
      const factor = 1 / Math.sqrt(variance / width + EPSILON);
      for (let n = 0; n < width; n++) states[start + n] = (states[start + n] - mean) * factor * gamma[n] + beta[n];
    }
    return states;
  }
}

/** Rows in int8, and what they were multiplied by; as many rows of zeros behind as make their number a multiple of 4. */
function rounded(inputs, count, width) {
  const rows = new Int8Array(Math.ceil(count / 4) * 4 * width), factors = new Float32Array(count);
  for (let n = 0, at = 0; n < count; n++) {
    let largest = 0;
    for (let k = 0; k < width; k++) largest = Math.max(largest, Math.abs(inputs[at + k]));
    factors[n] = largest ? 127 / largest : 1;
    for (let k = 0; k < width; k++, at++) rows[at] = halfToEven(Math.fround(inputs[at] * factors[n]));
  }
  return { rows, factors };
}

/** Four rows by two columns of weights: each number is read once for several products, which is three times as fast. */
function multiply(rows, row, weight, column, width, sums) {
  let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
  for (let k = 0; k < width; k++) {
    const one = weight[column + k], two = weight[column + width + k];
    const first = rows[row + k], second = rows[row + width + k], third = rows[row + 2 * width + k], fourth = rows[row + 3 * width + k];
    a = (a + Math.imul(first, one)) | 0;
    b = (b + Math.imul(first, two)) | 0;
    c = (c + Math.imul(second, one)) | 0;
    d = (d + Math.imul(second, two)) | 0;
    e = (e + Math.imul(third, one)) | 0;
    f = (f + Math.imul(third, two)) | 0;
    g = (g + Math.imul(fourth, one)) | 0;
    h = (h + Math.imul(fourth, two)) | 0;
  }
  sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d, sums[4] = e, sums[5] = f, sums[6] = g, sums[7] = h;
}

/** Rows of length 1, in place. */
export function unit(values, width) {
  for (let start = 0; start < values.length; start += width) {
    let sum = 0;
    for (let n = 0; n < width; n++) sum += values[start + n] ** 2;
    const factor = 1 / Math.max(Math.sqrt(sum), 1e-12);
    for (let n = 0; n < width; n++) values[start + n] *= factor;
  }
}

/** In place. */
export function softmax(values) {
  let largest = -Infinity, sum = 0;
  for (const value of values) largest = Math.max(largest, value);
  for (let n = 0; n < values.length; n++) sum += values[n] = Math.exp(values[n] - largest);
  for (let n = 0; n < values.length; n++) values[n] /= sum;
}

function gelu(value) {
  return 0.5 * value * (1 + erf(value * Math.SQRT1_2));
}

/** To 1.2e-7 (Numerical Recipes, erfcc). */
function erf(value) {
  const t = 1 / (1 + 0.5 * Math.abs(value));
  const terms = [1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277];
  const sum = terms.reduceRight((rest, term) => term + t * rest, 0);
  const tail = t * Math.exp(-value * value - 1.26551223 + t * sum);
  return value >= 0 ? 1 - tail : tail - 1;
}

function halfToEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
