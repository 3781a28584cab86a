"""An agent whose unsure tool calls wait for a human, and the same loop written by hand, which leaves them out."""

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from semgrad_guard import ChatSemGrad
from semgrad_guard.agents import ConfidenceMiddleware, filter_tool_calls, model_node
from semgrad_guard.demo import embedded_model, embedded_profile


def get_weather(place: str) -> str:
    """Tell the weather at a place."""
    print(f"   (get_weather runs for {place})")
    return "sunny, 21 degrees"


def find_route(origin: str, destination: str) -> str:
    """Find the way from one place to another."""
    print(f"   (find_route runs from {origin} to {destination})")
    return "go north for 12 miles"


chat, profile, tools = ChatSemGrad.from_model(*embedded_model()), embedded_profile(), [get_weather, find_route]
agent = create_agent(chat, tools, middleware=[ConfidenceMiddleware(profile)], checkpointer=InMemorySaver())

questions = ("What is the weather in Zubrovia?", "What is the weather like?", "What is the capital of Zubrovia?")
for number, question in enumerate(questions):
    print(question)
    config = {"configurable": {"thread_id": str(number)}}
    result = agent.invoke({"messages": [HumanMessage(question)]}, config)
    if "__interrupt__" in result:  # the model had to make the place up
        (request,) = result["__interrupt__"][0].value["action_requests"]
        print(request["description"])
        corrected = {"type": "edit", "edited_action": {"name": request["name"], "args": {"place": "Karurg"}}}
        result = agent.invoke(Command(resume={"decisions": [corrected]}), config)
    print("  ", result["messages"][-1].content)

node = model_node(chat, profile, tools)  # one step of a loop of one's own
for question in questions[:2]:
    (message,) = node.invoke({"messages": [HumanMessage(question)]})["messages"]
    message, held = filter_tool_calls(message, threshold=0.8)
    print(
        question, "runs:", [call["args"] for call in message.tool_calls], "held:", [call.call["args"] for call in held]
    )
