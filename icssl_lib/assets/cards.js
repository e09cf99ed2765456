// Products as cards, in groups. Whatever comes from a catalogue is set as text, never as HTML.

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function card(model, product) {
  const made = element("button", "icssl-card" + (product.agrees ? " icssl-agrees" : ""));
  made.type = "button";
  made.title = `${product.title}\nClick to see its neighbours`;
  if (product.picture) {
    const picture = element("img");
    picture.src = product.picture;
    picture.alt = "";
    made.append(picture);
  }
  made.append(element("span", "icssl-title", product.title), element("span", "icssl-label", product.label));
  made.append(element("span", "icssl-note", product.note));
  made.addEventListener("click", () => model.send({ position: product.position }));
  return made;
}

function render({ model, el }) {
  const draw = () => {
    const groups = model.get("groups").map(({ heading, note, cards, aside }) => {
      const group = element("section", "icssl-group" + (aside ? " icssl-aside" : ""));
      const row = element("div", "icssl-cards");
      row.append(...cards.map((product) => card(model, product)));
      group.append(element("h4", "", heading), element("p", "", note), row);
      return group;
    });
    el.replaceChildren(...groups);
  };
  model.on("change:groups", draw);
  el.classList.add("icssl-groups");
  draw();
}

export default { render };
