"use strict";
// The slopes: functions of two weights, with their gradients. `view` is left, right, bottom, top of the map.

const SLOPES = {
  valley: {
    view: [-4.4, 2.4, -1.2, 1.2],
    start: [-4, 0.9],
    lowest: [[0, 0]],
    rates: { gradient: 0.03, length: 0.2 },
    loss: (x, y) => 0.5 * (x ** 2 + 50 * y ** 2),
    gradient: (x, y) => [x, 50 * y],
  },
  saddle: {
    view: [-2.2, 2.2, -1.7, 1.7],
    start: [-1.8, 0.02],
    lowest: [[0, -1], [0, 1]],
    rates: { gradient: 0.1, length: 0.1 },
    loss: (x, y) => 0.5 * x ** 2 + 0.25 * (y ** 2 - 1) ** 2,
    gradient: (x, y) => [x, y * (y ** 2 - 1)],
  },
  rosenbrock: {
    view: [-2, 2, -0.8, 2.8],
    start: [-1.5, 1.5],
    lowest: [[1, 1]],
    rates: { gradient: 0.001, length: 0.1 },
    loss: (x, y) => (1 - x) ** 2 + 100 * (y - x ** 2) ** 2,
    gradient: (x, y) => [-2 * (1 - x) - 400 * x * (y - x ** 2), 200 * (y - x ** 2)],
  },
};

// The slope of a grid of losses: the cubic spline through them, which has two continuous derivatives. Outside of the grid
// the loss is NaN, for nobody has computed it there.
function createGridSlope({ x, y, losses }) {
  const coefficients = transpose(transpose(losses.map(filterSpline)).map(filterSpline));
  const [rows, columns] = [losses.length, losses[0].length];
  const scale = [(columns - 1) / (x[1] - x[0]), (rows - 1) / (y[1] - y[0])];
  const isInside = (a, b) => a >= x[0] && a <= x[1] && b >= y[0] && b <= y[1];

  const sum = (a, b, weightsX, weightsY) => {
    if (!isInside(a, b)) return NaN;
    const [u, v] = [(a - x[0]) * scale[0], (b - y[0]) * scale[1]];
    const [i, j] = [Math.min(Math.floor(u), columns - 2), Math.min(Math.floor(v), rows - 2)];
    const [along, up] = [weightsX(u - i), weightsY(v - j)];
    let total = 0;
    for (let q = 0; q < 4; q++) {
      const row = coefficients[mirror(j + q - 1, rows)];
      for (let p = 0; p < 4; p++) total += up[q] * along[p] * row[mirror(i + p - 1, columns)];
    }
    return total;
  };
  return {
    view: [...x, ...y],
    loss: (a, b) => sum(a, b, splineWeights, splineWeights),
    gradient: (a, b) => [
      scale[0] * sum(a, b, splineDerivatives, splineWeights),
      scale[1] * sum(a, b, splineWeights, splineDerivatives),
    ],
  };
}

const transpose = (rows) => rows[0].map((_, column) => rows.map((row) => row[column]));

// An index beyond an end of 0 … n − 1, mirrored at that end.
const mirror = (index, n) => (index < 0 ? -index : index >= n ? 2 * (n - 1) - index : index);

// The cubic B-spline and its derivative at the four grid points around a place that is f, from 0 to 1, past the second.
const splineWeights = (f) => [
  (1 - f) ** 3 / 6,
  (3 * f ** 3 - 6 * f ** 2 + 4) / 6,
  (-3 * f ** 3 + 3 * f ** 2 + 3 * f + 1) / 6,
  f ** 3 / 6,
];
const splineDerivatives = (f) => [-((1 - f) ** 2) / 2, (3 * f ** 2 - 4 * f) / 2, (-3 * f ** 2 + 2 * f + 1) / 2, f ** 2 / 2];

// The coefficients of the cubic B-spline through values that are mirrored at both ends: Unser (1999), "Splines: A Perfect
// Fit for Signal and Image Processing", box 2.
function filterSpline(values) {
  const n = values.length;
  const pole = Math.sqrt(3) - 2;
  const period = 2 * (n - 1);
  const forward = new Array(n);
  let first = 0;
  for (let k = 0; k < period; k++) first += values[mirror(k, n)] * pole ** k;
  forward[0] = first / (1 - pole ** period);
  for (let k = 1; k < n; k++) forward[k] = values[k] + pole * forward[k - 1];
  const result = new Array(n);
  result[n - 1] = (pole / (pole ** 2 - 1)) * (forward[n - 1] + pole * forward[n - 2]);
  for (let k = n - 2; k >= 0; k--) result[k] = pole * (result[k + 1] - forward[k]);
  return result.map((value) => 6 * value);
}
