"""In a LangGraph graph, an unsure answer interrupts the run until a human has decided; here a scripted one."""

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

from semgrad_guard import SemGradGuard
from semgrad_guard.agents import InterruptReview
from semgrad_guard.demo import embedded_model, embedded_profile

guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[InterruptReview()])


def answer(state: MessagesState) -> dict[str, list]:
    """Run again from the start when the run resumes."""
    return {"messages": [guard.invoke(state["messages"])]}


graph = StateGraph(MessagesState)
graph.add_node("answer", answer)
graph.add_edge(START, "answer")
graph.add_edge("answer", END)
app = graph.compile(checkpointer=InMemorySaver())

for question in ("What is the capital of France?", "What is the capital of Zubrovia?"):
    config = {"configurable": {"thread_id": question}}
    state = app.invoke({"messages": [("user", question)]}, config)
    for asked in state.get("__interrupt__", ()):
        print(f"held back: {asked.value['draft']!r} to {asked.value['question']!r}: {asked.value['verdict']['reason']}")
        state = app.invoke(Command(resume={"decision": "respond", "text": "There is no such place."}), config)
    print(question, state["messages"][-1].content)
