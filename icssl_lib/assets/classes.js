"use strict";
// The table stands in the page; this makes it sortable, filtered and open to examples. Texts enter as text alone.
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = id => document.getElementById(id);
  const table = at("table"), body = table.tBodies[0], heads = [...table.tHead.rows[1].cells];
  const rows = [...body.rows].map((row, index) => ({row, index, detail: null, button: null}));
  const order = new Intl.Collator(undefined, {numeric: true});
  const compares = data.compared.length > 0;
  const column = Object.fromEntries(heads.map((head, k) => [head.dataset.key + (head.dataset.method ?? ""), k]));
  let fraction = 0, method = 0, sorted = {head: heads[1], down: true};

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const decimals = value => (value / 1000).toFixed(3);
  const signed = value => (value < 0 ? "−" : value > 0 ? "+" : "±") + decimals(Math.abs(value));
  const ours = () => data.compared[method] ?? data.baseline;
  const cell = (index, m = ours(), f = fraction) => {
    const [f1, precision, recall, difference, low, high, gained, lost, wrong, won, missed] = data.cells[f][m][index];
    return {f1, precision, recall, difference, low, high, gained, lost, net: gained - lost, wrong, won, missed};
  };

  const value = (index, head) => {
    const {key, method} = head.dataset;
    if (key in data) return data[key][index];
    return cell(index, key === "f1" ? method : ours())[key];
  };

  // Colour where all seeds agree on the sign; darker from 0.1 and from 0.25 on.
  const shade = ({difference, low, high}) => {
    if (low <= 0 && high >= 0) return "";
    const size = Math.abs(difference);
    return (difference > 0 ? "up" : "down") + (size >= 250 ? 3 : size >= 100 ? 2 : 1);
  };

  const fill = () => {
    for (const {row, index} of rows) {
      data.methods.forEach((_, m) => { row.cells[column["f1" + m]].textContent = decimals(cell(index, m).f1); });
      if (!compares) continue;
      const found = cell(index);
      row.cells[column.net].textContent = String(found.net).replace("-", "−");
      row.cells[column.gained].textContent = found.gained;
      row.cells[column.lost].textContent = found.lost;
      row.cells[column.difference].textContent = signed(found.difference);
      row.cells[column.difference].className = shade(found);
    }
    if (compares) {
      at("against").textContent = `${data.methods[ours()]} against ${data.methods[data.baseline]}`;
      at("caption").replaceChildren(...data.captions[fraction][method].map(line => make("p", {}, line)));
    }
    for (const entry of rows) if (entry.detail) open(entry);
  };

  const sort = () => {
    const {head, down} = sorted, sign = down ? -1 : 1;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = rows.map(entry => [entry, value(entry.index, head)]);
    const compare = typeof keyed[0]?.[1] === "string" ? order.compare : (a, b) => a - b;
    keyed.sort((a, b) => sign * compare(a[1], b[1]) || a[0].index - b[0].index);
    body.append(...keyed.flatMap(([entry]) => entry.detail ? [entry.row, entry.detail] : [entry.row]));
  };

  const filter = () => {
    const words = at("filter").value.toLocaleLowerCase().split(/\s+/), part = at("part").value;
    let shown = 0;
    for (const {row, index, detail} of rows) {
      const label = data.label[index].toLocaleLowerCase();
      const kept = words.every(word => label.includes(word)) && (!part || data.part[index] === part);
      row.hidden = !kept;
      if (detail) detail.hidden = !kept;
      shown += kept;
    }
    const by = sorted.head.textContent;
    at("status").textContent = `${shown} of ${rows.length} classes, by ${by}, ${sorted.down ? "descending" : "ascending"}. `
      + "Open one to see why: products that it gained and lost, and what they were called instead.";
  };

  const called = pairs => make("bdi", {}, pairs.map(([name, share]) => `${data.names[name]} (${share}%)`).join(", ") || "–");

  const scores = index => {
    const heads = [...data.fractions.map(name => `F1 at ${name}`), "Precision", "Recall", "Wrongly called"];
    const head = make("tr", {}, make("th", {scope: "col"}, "Method"));
    heads.forEach((name, k) => head.append(
      make("th", {scope: "col", class: k === fraction ? "now" : k === heads.length - 1 ? "text" : ""}, name)));
    const lines = data.methods.map((name, m) => {
      const line = make("tr", {}, make("th", {scope: "row"}, name));
      data.fractions.forEach((_, f) => line.append(
        make("td", {class: f === fraction ? "now" : ""}, decimals(cell(index, m, f).f1))));
      const {precision, recall, wrong} = cell(index, m);
      line.append(make("td", {}, decimals(precision)), make("td", {}, decimals(recall)), make("td", {class: "text"}, called(wrong)));
      return line;
    });
    return make("div", {class: "wide", role: "region", tabindex: 0, "aria-label": `F1 of ${data.label[index]}`},
      make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)));
  };

  const examples = (index, change) => {
    const names = [data.methods[ours()], data.methods[data.baseline]], found = cell(index);
    const [right, wrong] = change === "gained" ? names : names.reverse();
    const count = found[change], shown = change === "gained" ? found.won : found.missed;
    const list = make("ul");
    for (const [product, label] of shown) {
      const {title, picture} = data.products[product];
      const text = make("p", {}, make("bdi", {}, title), make("br"),
        make("span", {class: "soft"}, `${wrong}: `, make("bdi", {}, data.names[label])));
      const item = make("li", {}, text);
      if (picture) item.prepend(make("img", {src: "data:image/webp;base64," + picture, alt: "", width: 64, height: 64}));
      list.append(item);
    }
    const some = shown.length < count ? `; ${shown.length} shown` : "";
    return make("div", {}, make("h3", {}, `${change === "gained" ? "Gained" : "Lost"}: ${count}${some}`),
      make("p", {class: "soft"}, `${right} is right, ${wrong} wrong, in most seeds.`), list);
  };

  const open = entry => {
    const inside = make("div", {class: "inside"});
    if (compares) {
      const {difference, low, high} = cell(entry.index);
      inside.append(make("p", {}, `At ${data.fractions[fraction]} of Train: F1 ${signed(difference)}, from ${signed(low)} to `
        + `${signed(high)} over the seeds.`),
        make("div", {class: "lists"}, examples(entry.index, "gained"), examples(entry.index, "lost")));
    }
    inside.append(make("h3", {}, "Every method"), scores(entry.index));
    if (!entry.detail) {
      entry.detail = make("tr", {class: "detail", id: `class-${entry.index}`});
      entry.row.after(entry.detail);
      entry.button.setAttribute("aria-controls", entry.detail.id);
    }
    entry.detail.replaceChildren(make("td", {colspan: heads.length}, inside));
    entry.button.setAttribute("aria-expanded", "true");
  };

  const close = entry => {
    entry.detail.remove();
    entry.detail = null;
    entry.button.setAttribute("aria-expanded", "false");
    entry.button.removeAttribute("aria-controls");
  };

  for (const entry of rows) {
    const head = entry.row.cells[0];
    entry.button = make("button", {type: "button", "aria-expanded": "false"}, ...head.childNodes);
    entry.button.addEventListener("click", () => entry.detail ? close(entry) : open(entry));
    head.replaceChildren(entry.button);
  }
  for (const head of heads) {
    const button = make("button", {type: "button"}, ...head.childNodes);
    button.addEventListener("click", () => {
      const text = typeof value(0, head) === "string"; // first A to Z, or the largest first
      sorted = {head, down: sorted.head === head ? !sorted.down : !text};
      sort();
      filter();
    });
    head.replaceChildren(button);
  }
  at("fraction").addEventListener("change", event => { fraction = Number(event.target.value); fill(); sort(); filter(); });
  at("method")?.addEventListener("change", event => { method = Number(event.target.value); fill(); sort(); filter(); });
  at("part").addEventListener("change", filter);
  at("filter").addEventListener("input", filter);
  at("controls").addEventListener("submit", event => event.preventDefault());
  at("controls").hidden = false;
  at("plain").hidden = true;
  fill();
  sort();
  filter();
}
