"""A guarded LCEL chain: answers when the model is sure; when it is not, another one does, or nobody."""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda

from semgrad_guard import Abstain, Escalate, LowConfidenceError, Raise, RateLimit, SemGradGuard
from semgrad_guard.demo import embedded_model, embedded_profile

guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[Abstain("I am not sure.")])
prompt = ChatPromptTemplate.from_template("What is the capital of {place}?")
chain = prompt | guard | StrOutputParser()
for place in ("France", "Japan", "Zubrovia"):
    print(f"{place}: {chain.invoke({'place': place})}")

# The threshold, chosen at run time.
adjustable = guard.configurable_fields(threshold=ConfigurableField(id="threshold"))
message = (prompt | adjustable).invoke({"place": "Zubrovia"}, {"configurable": {"threshold": 0.0}})
print("at any confidence:", message.content)

# A larger model, asked at most ten times an hour; here a stand-in.
larger = RunnableLambda(lambda messages: "Zubrovia is invented.")
escalating = SemGradGuard(guard.llm, profile=guard.profile, routes=[Escalate(larger, budget=RateLimit(10, per=3600))])
print("escalated:", (prompt | escalating).invoke({"place": "Zubrovia"}).content)

# LangChain's own fallbacks, where the guard raises.
raising = SemGradGuard(guard.llm, profile=guard.profile, routes=[Raise()])
other = RunnableLambda(lambda given: f"nobody knows: {given['error']}")
safe = (prompt | raising).with_fallbacks([other], exceptions_to_handle=(LowConfidenceError,), exception_key="error")
print("fallback:", safe.invoke({"place": "Zubrovia"}))
